"""The page: self-contained, escaped, the same bytes each time, and every number in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas
import pytest
import reports

from engine.report import finish, page
from engine.report.page import Page
from engine.report.results import of_campaign
from engine.report.section import Figure, Picture, Section, Table
from engine.report.text import signed

VOID = {"meta", "img", "wbr", "br", "link", "input"}
PNG = b"\x89PNG\r\n\x1a\n"
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
    return pandas.DataFrame({"method": ["FT", "LP"], "x_pts": [1.0, None]} | columns)


def figure(name: str = "dots", data: pandas.DataFrame | None = None) -> Figure:
    spec = {"mark": "point", "encoding": {"x": {"field": "x_pts", "type": "quantitative"}}}
    return Figure(name, "A caption.", "In words.", frame() if data is None else data, spec)


def written_page(folder, *sections: Section, **words) -> str:
    words = {"title": "A title", "heading": "A heading", "lead": ""} | words
    path = page.write(folder / "index.html", Page(sections=sections, **words))
    return path.read_text("utf-8")


def test_a_report_is_one_sound_self_contained_page(report):
    path, results = report
    html = path.read_text("utf-8")
    parsed = Parsed(html)
    local = [name for name in parsed.addresses if not name.startswith(("data:", "#"))]
    assert all((path.parent / name).is_file() for name in local if "://" not in name)
    assert [name for name in local if "://" in name] == ["https://example.org/a?b=1&c=2"]
    assert not re.search(r"@import|url\(", html[: html.index("report-data")])
    assert html.count("window.vegaEmbed=") == 1
    for line in results.ranked().itertuples():
        assert line.method in parsed.text and signed(line.mRI_pts) in parsed.text


def test_the_story_comes_first_and_the_rest_is_folded(report):
    html = report[0].read_text("utf-8")
    keys = re.findall(r'<section id="([^"]*)"', html)
    assert keys == [
        *("ranking", "trade-off", "how-sure", "maps", "barrier", "upstream-change"),
        *("images", "distances", "explorer", "how-to-read", "settings", "credits"),
    ]
    is_folded = ["<details>" in part for part in html.split("<section id=")[1:]]
    assert is_folded == [False, False] + [True] * 10


def test_headings_say_what_was_found(report):
    headings = Parsed(report[0].read_text("utf-8")).headings
    best = report[1].ranked().iloc[0]["method"]
    assert headings[0] == f"{best} ranks first by mRI" and best in headings[2]
    assert headings[5].startswith("Upstream, accuracy changes by ")


def test_the_same_results_make_the_same_bytes(tmp_path):
    run = reports.finished(tmp_path / "runs")
    contents = []
    for _ in range(2):
        finish.write(run, of_campaign(run))
        files = sorted(path for path in run.report.rglob("*") if path.is_file())
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1] and len(contents[0]) > 20


def test_a_data_set_is_embedded_once_and_with_its_numbers(tmp_path):
    table = Table("numbers", "Numbers.", frame())
    html = written_page(
        tmp_path, Section("a", "A", figures=[figure(), figure("again")], tables=[table])
    )
    data = embedded(html)
    assert {entry["data"] for entry in data["figures"].values()} == set(data["data"])
    (columns,) = data["data"].values()
    assert columns == {"method": {"codes": [0, 1], "levels": ["FT", "LP"]}, "x_pts": [1.0, None]}
    texts = data["tables"]["numbers"]["columns"][1]["texts"]
    assert texts == {"codes": [0, 1], "levels": ["+1.0", "–"]}


def test_words_of_users_are_escaped_wherever_they_stand(tmp_path):
    data = frame(model=[BAD, BAD + "2"])
    bad = replace(figure(data=data), caption=BAD, alt=BAD)
    table = Table("t", BAD, data)
    pictures = {BAD: [Picture(BAD, b"RIFF....WEBP"), Picture(BAD, PNG)]}
    section = Section("a", BAD, BAD, [BAD], [bad], [table], pictures)
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


def test_a_picture_that_is_neither_png_nor_webp_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be the bytes of a PNG or a WebP"):
        written_page(tmp_path, Section("a", "A", pictures={"x": [Picture("y", b"GIF89a")]}))


def test_the_bundle_is_made_once_a_version_and_a_cache_is_no_need(tmp_path, monkeypatch):
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(page.vl_convert, "javascript_bundle", lambda _: made.append(1) or "js")
    assert page._bundle() == page._bundle() == "js" and made == [1]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "file"))
    assert page._bundle() == "js" and made == [1, 1]
