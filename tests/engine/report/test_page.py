"""The page: self-contained, escaped, the same bytes each time, and every number in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas
import pytest
import reports

from engine.measures.standings import signed
from engine.report import finish, page, tables
from engine.report.page import Page
from engine.report.section import Figure, Gallery, Picture, Section, Table, Thumbnail

VOID = {"meta", "img", "wbr", "br", "link", "input"}
BAD = "<script>alert('x')</script>&\"</script>{{ 7*7 }}"


class Parsed(HTMLParser):
    """Fails on a tag that is closed out of order; collects text, addresses and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.scripts = "", []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text += data
        if "h2" in self.open:
            self.headings[-1] += data


def embedded(html: str) -> dict:
    (text,) = re.findall(r'id="report-data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def frame(**columns) -> pandas.DataFrame:
    return pandas.DataFrame({"method": ["FT", "LP"], "x": [1.0, None]} | columns)


def figure(name: str = "dots", data: pandas.DataFrame | None = None) -> Figure:
    spec = {"mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}
    return Figure(name, "A caption.", "In words.", frame() if data is None else data, spec)


def written_page(folder, *sections: Section, **words) -> str:
    words = {"title": "A title", "heading": "A heading", "lead": ""} | words
    path = page.write(folder / "index.html", Page(sections=sections, **words))
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = reports.finished(tmp_path_factory.mktemp("runs"))
    results = tables.results(run)
    return finish.write(run, results), results


def test_a_report_is_one_sound_self_contained_page(report):
    path, results = report
    html = path.read_text("utf-8")
    parsed = Parsed(html)
    local = [name for name in parsed.addresses if not name.startswith(("data:", "#"))]
    assert all((path.parent / name).is_file() for name in local if "://" not in name)
    assert [name for name in local if "://" in name] == ["https://example.org/a?b=1&c=2"]
    assert not re.search(r"@import|url\(", html[: html.index("report-data")])
    assert html.count("window.vegaEmbed=") == 1
    for line in results.models[0].ranked():
        assert line.title in parsed.text and signed(line.mri.mri) in parsed.text


def test_sections_come_in_order(report):
    assert Parsed(report[0].read_text("utf-8")).headings == [
        "Mean robustness improvement",
        "How sure",
        "Robustness improvement, set by set",
        "Where it helps and where it hurts",
        "What adapting costs elsewhere",
        "Between the pre-trained model and the fine-tuned one",
        "What is forgotten upstream",
        "What became of single answers",
        "Which images were gained and lost",
        "Is what is far forgotten more?",
        "What the sets look like",
        "How to read this",
        "The methods",
        "What was left out",
        "What was run",
        "Credits",
    ]


def test_the_same_results_make_the_same_bytes(tmp_path):
    run = reports.finished(tmp_path / "runs")
    contents = []
    for _ in range(2):
        finish.write(run, tables.results(run))
        files = sorted(path for path in run.report.rglob("*") if path.is_file())
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1] and len(contents[0]) > 20


def test_a_data_set_is_embedded_once_and_with_its_numbers(tmp_path):
    table = Table("numbers", "Numbers.", frame(), {"x": "signed1"})
    html = written_page(
        tmp_path, Section("a", "A", figures=[figure(), figure("again")], tables=[table])
    )
    data = embedded(html)
    assert {entry["data"] for entry in data["figures"].values()} == set(data["data"])
    (columns,) = data["data"].values()
    assert columns == {"method": {"codes": [0, 1], "levels": ["FT", "LP"]}, "x": [1.0, None]}
    assert data["tables"]["numbers"]["columns"][1]["texts"] == ["+1.0", "–"]


def test_words_of_users_are_escaped_wherever_they_stand(tmp_path):
    data = frame(model=[BAD, BAD + "2"])
    bad = replace(figure(data=data), caption=BAD, alt=BAD)
    table = Table("t", BAD, data)
    gallery = Gallery(BAD, [Thumbnail(BAD, b"RIFF....WEBP")])
    section = Section("a", BAD, BAD, [BAD], [bad], [table], [Picture(BAD, page.PNG)], [gallery])
    html = written_page(tmp_path, section, title=BAD, heading=BAD, lead=BAD, notes=[BAD])
    parsed = Parsed(html)
    assert len(re.findall(r"<script", html)) == 3
    assert parsed.text.count(BAD) >= 8 and "alert('" not in html[: html.index("report-data")]
    levels = [
        c["levels"] for d in embedded(html)["data"].values() for c in d.values() if "levels" in c
    ]
    assert [BAD, BAD + "2"] in levels


def test_a_long_table_has_few_rows_in_the_document_and_all_in_the_data(tmp_path):
    data = pandas.DataFrame({"method": [f"m{k % 7}" for k in range(1000)], "x": range(1000)})
    html = written_page(tmp_path, Section("a", "A", tables=[Table("long", "Long.", data)]))
    assert html.count("<tr>") == 1 + page.ROWS
    (columns,) = embedded(html)["data"].values()
    assert columns["x"] == list(range(1000)) and len(columns["method"]["codes"]) == 1000
    assert html.count("<option>") == 7 and "window.vegaEmbed=" not in html


@pytest.mark.parametrize("name", ["", "a b", "../x", "a--b", "-a", "é"])
def test_names_that_are_no_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="letters, digits and single dashes"):
        written_page(tmp_path, Section("a", "A", figures=[figure(name)]))
    assert not (tmp_path / "index.html").exists()


def test_a_name_that_comes_twice_is_refused(tmp_path):
    sections = [Section(key, "A", figures=[figure()]) for key in ("a", "b")]
    with pytest.raises(ValueError, match="'dots' is used twice"):
        written_page(tmp_path, *sections)


def test_a_picture_that_is_no_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be the bytes of a PNG"):
        written_page(tmp_path, Section("a", "A", pictures=[Picture("x", b"GIF89a")]))


def test_a_thumbnail_that_is_no_webp_is_refused(tmp_path):
    gallery = Gallery("x", [Thumbnail("y", page.PNG)])
    with pytest.raises(ValueError, match="must be the bytes of a WebP"):
        written_page(tmp_path, Section("a", "A", galleries=[gallery]))
