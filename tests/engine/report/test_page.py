"""The page: self-contained, escaped, the same bytes each time, and every number in it."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import pandas
import pytest

from engine.report import exports, page
from engine.report.section import Figure, Picture, Section, Table
from engine.report.text import signed

VOID = {"meta", "img", "wbr", "br", "link", "input"}
BAD = "<script>alert('x')</script>&\"</script>{{ 7*7 }}"
SPEC = {"mark": "point", "encoding": {"x": {"field": "x_pts", "type": "quantitative"}}}
FIGURE = Figure(
    "dots", "A caption.", "In words.", pandas.DataFrame({"method": ["FT"], "x_pts": [1.0]}), SPEC
)


class Parsed(HTMLParser):
    """The text outside scripts and styles. Fails on a tag that is closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def embedded(html: str) -> dict:
    (text,) = re.findall(r'id="report-data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def written_page(folder, *sections: Section, **words) -> str:
    path = page.write(
        folder / "index.html",
        sections,
        **{"title": "A title", "heading": "A heading", "files": ()} | words,
    )
    return path.read_text("utf-8")


def test_a_report_is_one_sound_self_contained_page(report):
    path, results = report
    html = path.read_text("utf-8")
    before_data, text = html[: html.index("report-data")], Parsed(html).text
    addresses = re.findall(r' (?:src|href)="([^"]*)"', before_data)
    local = [name for name in addresses if not name.startswith(("data:", "#"))]
    assert all((path.parent / name).is_file() for name in local if "://" not in name)
    assert [name for name in local if "://" in name] == ["https://example.org/a?b=1&amp;c=2"]
    assert not re.search(r"@import|url\(", before_data)
    assert html.count("window.vegaEmbed=") == 1
    for line in results.ranked().itertuples():
        assert line.method in text and signed(line.mRI_pts) in text


def test_the_story_comes_first_and_headings_say_what_was_found(report):
    path, results = report
    html = path.read_text("utf-8")
    keys = re.findall(r'<section id="([^"]*)"', html)
    assert keys == [
        *(
            "ranking",
            "trade-off",
            "samples",
            "map",
            "related-sets",
            "differences",
            "maps",
            "barrier",
        ),
        *(
            "upstream-change",
            "images",
            "distances",
            "all-numbers",
            "how-to-read",
            "settings",
            "credits",
        ),
        "cite",
    ]
    is_folded = ["<details>" in part for part in html.split("<section id=")[1:]]
    assert is_folded == [False] * 4 + [True] * 12
    headings, best = re.findall("<h2[^>]*>(.*?)</h2>", html), results.ranked().iloc[0]["method"]
    assert headings[0] == f"{best} has the highest mRI (one training)"
    assert re.fullmatch(r"\d+ of \d+ methods lose accuracy on up(stream)?.*", headings[8])


def test_words_of_users_are_escaped_wherever_they_stand(tmp_path):
    data = pandas.DataFrame({"method": ["FT", "LP"], "model": [BAD, BAD + "2"]})
    bad = replace(FIGURE, data=data, caption=BAD, alt=BAD)
    section = Section("a", BAD, BAD, [bad], [Table("t", BAD, data)], {BAD: [Picture(BAD, BAD)]})
    html = written_page(tmp_path, section, title=BAD, heading=BAD + "!", lead=BAD, notes=[BAD])
    assert len(re.findall(r"<script", html)) == 3
    assert Parsed(html).text.count(BAD) >= 8
    assert "alert('" not in html[: html.index("report-data")]
    assert BAD in embedded(html)["figures"]["dots"]["data"]["values"].replace('""', '"')


def test_a_long_table_has_few_rows_in_the_document_and_all_in_the_data(tmp_path):
    data = pandas.DataFrame({"method": [f"m{k % 7}" for k in range(1000)], "x_pts": range(1000)})
    html = written_page(tmp_path, Section("a", "A", tables=[Table("long", "Long.", data)]))
    assert html.count("<tr>") == 1 + page.ROWS
    table = embedded(html)["tables"]["long"]
    assert table["rows"][999] == ["m5", "+999.0"] and table["numeric"] == [False, True]
    assert table["csv"].splitlines()[1000] == "m5,999"
    assert html.count("<option>") == 7 and "window.vegaEmbed=" not in html


def test_percentages_above_a_table_are_on_the_page_alone(tmp_path):
    data = pandas.DataFrame({"method": ["FT"], "a_pts": [1.0], "b_pts": [2.0]})
    table = Table("t", "T.", data, above={"pretrained %": {"a_pts": 62.5, "b_pts": None}})
    html = written_page(tmp_path, Section("a", "A", tables=[table]))
    above = ["<td>pretrained %</td>", '<td class="number">62.5</td>', '<td class="number"></td>']
    assert f"<tr>{''.join(above)}</tr>" in html
    assert embedded(html)["tables"]["t"]["rows"] == [["FT", "+1.0", "+2.0"]]


def test_charts_are_in_the_page_without_scripts(tmp_path):
    html = written_page(tmp_path, Section("a", "A", figures=[FIGURE]))
    (drawing,) = re.findall(
        r'</div><img class="drawing" alt="" src="data:image/svg\+xml;base64,(\S+)">', html
    )
    assert b64decode(drawing) == exports.svg(FIGURE)


def test_a_name_that_comes_twice_is_refused(tmp_path):
    for keys, message in (("ab", "two figures named 'dots'"), ("aa", "two sections named 'a'")):
        with pytest.raises(ValueError, match=message):
            written_page(tmp_path, *(Section(key, "A", figures=[FIGURE]) for key in keys))


def test_the_bundle_is_made_once_a_version_and_a_cache_is_no_need(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(page.vl_convert, "javascript_bundle", lambda _: made.append(1) or "js")
    (tmp_path / "file").write_text("in the way")
    for name, count in (("cache", 1), ("cache", 1), ("file", 2)):
        monkeypatch.setenv("RIB_CACHE", str(tmp_path / name))
        assert "<script>js</script>" in written_page(tmp_path, Section("a", "A", figures=[FIGURE]))
        assert len(made) == count
