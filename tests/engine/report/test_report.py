"""The report and the terminal table: right numbers, in order, escaped, readable, self-contained."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import recipe
from engine.measures.metrics import PRE, Accuracy, Mri, improvements
from engine.measures.standings import signed, standings
from engine.report import charts, console, page, sections
from engine.report.plot import ticks
from engine.report.table import set_head, table

SETS = ["mono", "flat", "twemoji", "emojione-monotone"]
BEFORE = {"mono": 8.0, "flat": 64.0, "twemoji": 46.0, "emojione-monotone": 10.0, "up": 95.0}
METHODS = {"fine_tune": "FT", "lwf": "LwF", "wise_ft": "WiSE-FT"}
PNG = page.PNG + b"not really"
VOID = {"meta", "img", "wbr", "br", "link"}


def campaign(shift=None, model="lite0", seed=0):
    """Rows of a whole grid; `shift` is each method's mean change, alphas lie between."""
    shift = shift or {"fine_tune": 3.0, "lwf": 5.0, "wise_ft": 9.0}
    rng = np.random.default_rng(seed)
    rows = [Accuracy(model, PRE, "", None, "", "", on, 100, value) for on, value in BEFORE.items()]
    mri = []
    for method, mean in shift.items():
        for alpha in (0.0, 0.5, 1.0) if method == "wise_ft" else (None,):
            arm, row = (model, method, "canonical", alpha, ""), alpha in (None, 0.5)
            rows += [
                Accuracy(*arm, i, j, 100, BEFORE[j] + (30 if i == j else mean) + rng.normal(), row)
                for i in SETS
                for j in BEFORE
            ]
            ri = np.mean(list(improvements(rows, SETS)[rows[-1].arm].values()))
            mri.append(Mri(*arm, float(ri), float(ri) - 1, float(ri) + 1, headline=row))
    return rows, mri


def arranged(rows, mri, methods=METHODS):
    return standings(rows, mri, sets=SETS, upstream="up", methods=methods)


def arrange(rows, mri):
    (one,) = arranged(rows, mri)
    return one


def write(folder, rows, mri, methods=METHODS, **options) -> str:
    options = {"title": "emoji-RIB", "settings": {"seed": 0}} | options
    path = page.write(folder, models=arranged(rows, mri, methods), upstream="up", **options)
    assert path == folder / "index.html"
    return path.read_text("utf-8")


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of turn; keeps the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def test_standings_order_and_means():
    rows, mri = campaign()
    one = arrange(rows, mri)
    assert one.sets == ("flat", "twemoji", "emojione-monotone", "mono")
    assert [line.title for line in one.lines] == ["FT", "LwF", "WiSE-FT"]
    assert [line.arm.alpha for line in one.curves[0]] == [0.0, 0.5, 1.0]
    assert [line.title for line in one.ranked()] == ["WiSE-FT", "LwF", "FT"]
    ft = one.lines[0]
    mean_before = np.mean([BEFORE[name] for name in SETS])
    assert ft.ood == pytest.approx(ft.mri.mri + mean_before)
    assert ft.downstream == pytest.approx(np.mean([ft.after[name][name] for name in SETS]))
    assert ft.upstream == pytest.approx(np.mean([ft.after[name]["up"] - 95 for name in SETS]))


def test_standings_name_variants_and_methods_nobody_titled():
    rows, mri = campaign()
    extra = [replace(r, variant="paper") for r in rows if r.method == "fine_tune"]
    extra += [replace(r, method="mine") for r in rows if r.method == "lwf"]
    mri += [replace(r, variant="paper", mri=2.0) for r in mri if r.method == "fine_tune"]
    mri += [replace(r, method="mine", mri=1.0) for r in mri if r.method == "lwf"]
    one = arrange(rows + extra, mri)
    assert [line.title for line in one.lines] == ["FT", "FT (paper)", "LwF", "WiSE-FT", "mine"]
    assert [line.title for line in one.ranked()] == ["WiSE-FT", "LwF", "FT", "FT (paper)", "mine"]


def test_an_interpolation_of_one_alpha_is_in_the_table_and_in_the_plot():
    rows, mri = campaign()
    one = arrange(
        [replace(row, alpha=0.3) for row in rows if row.alpha in (None, 0.5) and row.method != PRE]
        + [row for row in rows if row.method == PRE],
        [replace(row, alpha=0.3) for row in mri if row.headline],
    )
    assert "WiSE-FT, alpha 0.3" in [line.title for line in one.lines] and one.curves == ()
    assert "WiSE-FT, alpha 0.3" in charts.trade_off(one)


def test_table_shows_every_number_in_place():
    rows, mri = campaign()
    one = arrange(rows, mri)
    text = table([one], ["a sample"])
    assert text.endswith("\n\nnote: a sample")
    lines = text.splitlines()
    (before,) = [line.split() for line in lines if line.startswith("pre-trained")]
    assert before == ["pre-trained", "%", "64.0", "46.0", "10.0", "8.0"]
    for expected in one.lines:
        (found,) = [line for line in lines if line.startswith(expected.title + " ")]
        numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", found.replace("−", "-"))]
        row = expected.mri
        wanted = [*(expected.ri[name] for name in one.sets), row.mri, row.mri_low, row.mri_high]
        assert numbers == pytest.approx(wanted, abs=0.051)
    assert set(text) - {"─"} <= set(map(chr, range(128)))


@given(
    st.lists(st.text("abcdefgh-_", min_size=1, max_size=30), min_size=8, max_size=8, unique=True),
    st.floats(-99, 99),
)
def test_table_fits_the_terminal_and_is_aligned(sets, change):
    rows = [Accuracy("m", PRE, "", None, "", "", name, 1, 50.0) for name in sets]
    arm = ("m", "greedy_soup", "canonical", None, "")
    rows += [Accuracy(*arm, i, j, 1, 50.0 + change) for i in sets for j in sets]
    mri = [Mri(*arm, change, change, change)]
    methods = {"greedy_soup": "Greedy soup"}
    text = table(standings(rows, mri, sets=sets, upstream="", methods=methods))
    lines = text.splitlines()
    rule = next(len(line) for line in lines if line.startswith("─"))
    assert rule <= 100 and max(map(len, lines)) <= 100
    assert len(lines[-1]) == rule
    numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", lines[-1])]
    assert numbers == pytest.approx([change] * 11, abs=0.051)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"fine_tune": 3.0, "lwf": 9.0}, ["LwF gains most", "three sets", "against +", "plain"]),
        ({"fine_tune": 9.0, "lwf": 3.0}, ["FT gains most", "ahead of LwF at +"]),
        ({"fine_tune": -9.0, "lwf": -3.0}, ["LwF loses least", "against −"]),
        ({"lwf": 5.0}, ["LwF gains most", "95% interval"]),
        ({}, ["No method has been fine-tuned on all four sets yet"]),
    ],
)
def test_finding(shift, words):
    rows, mri = campaign(shift or {"lwf": 1.0})
    if not shift:
        rows, mri = [row for row in rows if row.method == PRE], []
    text = page.finding(arrange(rows, mri))
    assert all(word in text for word in words), text


def test_report_is_one_sound_self_contained_page(tmp_path):
    rows, mri = campaign()
    html = write(
        tmp_path, rows, mri, contact_sheet=PNG, credits=[{"set": "flat", "licence": "MIT"}]
    )
    balanced = Balanced(html)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)
    assert base64.b64encode(PNG).decode() in html
    assert not re.search(r"<script|<link|@import|url\(|src=\"(?!data:)", html)
    assert {m for m in re.findall(r'href="([^"]*)"', html)} == {"accuracy.csv", "mri.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    for line in arrange(rows, mri).ranked():
        assert line.title in balanced.text and signed(line.mri.mri) in balanced.text
    assert write(tmp_path, rows, mri) == write(tmp_path, rows, mri)


def test_sections_come_in_order(tmp_path):
    rows, mri = campaign()
    html = write(tmp_path, rows, mri, contact_sheet=PNG, credits=[{"set": "flat"}])
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Mean robustness improvement",
        "Robustness improvement, set by set",
        "Where it helps and where it hurts",
        "What adapting costs elsewhere",
        "What is forgotten upstream",
        "What the sets look like",
        "How to read this",
        "The methods",
        "Settings",
        "Credits",
    ]


def test_hostile_text_is_escaped(tmp_path):
    bad = "<script>alert('x')</script>&\"$body"
    rows, mri = campaign(model=bad)
    html = write(
        tmp_path,
        rows,
        mri,
        title=bad,
        methods={"fine_tune": bad},
        settings={bad: bad},
        credits=[{bad: bad, "url": 'https://example.org/?a=1&b="'}],
        notes=[bad],
    )
    assert "<script" not in html and "alert('" not in html
    assert Balanced(html).text.count("<script>alert('x')</script>&\"$body") >= 6
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)
    assert 'href="https://example.org/?a=1&amp;b=&quot;"' in html


def test_heat_map_holds_every_cell_and_marks_the_diagonal():
    rows, mri = campaign()
    one = arrange(rows, mri)
    svg = ET.fromstring(charts.heat_map(one, one.lines[0], "up", 40.0))
    cells = svg.findall("g")
    assert len(cells) == 4 * 5
    numbers = [cell.findtext("text") for cell in cells]
    for k, downstream in enumerate(one.sets):
        after = one.lines[0].after[downstream]
        expected = [signed(after[name] - BEFORE[name], 0) for name in (*one.sets, "up")]
        expected[k] = f"{after[downstream]:.0f}"
        assert numbers[5 * k : 5 * k + 5] == expected
    marked = [k for k, cell in enumerate(cells) if cell.find("rect").get("class") == "own"]
    assert marked == [0, 6, 12, 18]


def test_published_numbers_stand_beside_ours_for_their_model_only(tmp_path):
    published = recipe.published() | {"downstreams": len(SETS)}
    for model in ("LAION-2B", "vit_base_patch16_clip_224.laion2b_ft_in1k"):
        rows, mri = campaign(model=model)
        text = Balanced(write(tmp_path, rows, mri, published=published)).text
        assert "published mRI" in text and "−38.1" in text and "−21.6" in text
        assert published["source"] in text
    assert "published mRI" not in write(tmp_path, *campaign(), published=published)
    assert "ublished" not in Balanced(write(tmp_path, *campaign())).text
    rows, mri = campaign(model="LAION-2B")
    over_eight = Balanced(write(tmp_path, rows, mri, published=recipe.published())).text
    assert recipe.published()["downstreams"] == 8 and "published mRI" not in over_eight


def test_an_mri_over_some_of_the_sets_is_named_so_and_has_no_published_one():
    rows, mri = campaign(model="LAION-2B")
    rows = [row for row in rows if row.downstream != SETS[0]]
    arranged = {"sets": SETS, "upstream": "up", "methods": METHODS, "downstreams": SETS[1:]}
    (one,) = standings(rows, mri, **arranged)
    assert "mRI: its mean over 3 downstream sets." in " ".join(table([one]).split())
    published = recipe.published() | {"downstreams": len(SETS)}
    of_page = sections.Page("up", published, "own")
    for text in (sections.ranking(one, of_page), sections.models([one, one], of_page)):
        assert "over 3 downstream sets" in text
        assert "published mRI" not in text and "in brackets" not in text and "38.1" not in text
    read = sections.how_to_read([one], of_page)
    assert "mRI is the mean of RI over 3 downstream sets. The sets that are only eval" in read
    assert "mRI plus the mean accuracy" not in read
    assert "over the 3 other sets" in read
    whole = sections.how_to_read([arrange(*campaign())], of_page)
    assert "mRI plus the mean accuracy before: " in whole


def test_published_numbers_are_the_slides():
    models = recipe.published()["models"]
    assert {len(entry["mri"]) for entry in models.values() if "mri" in entry} == {9}
    assert models["IN-1K+AugReg"]["mri"]["soup"] == 3.9
    before, after = (models["OpenAI"][key] for key in ("before", "fine_tuned_on_val"))
    assert after["IN-A"] - before["IN-A"] == pytest.approx(-33.4, abs=0.05)
    assert all(
        set(entry["before"]) == set(entry["fine_tuned_on_val"])
        for entry in models.values()
        if "before" in entry
    )


def test_a_grid_of_two_sets_and_one_method_is_written_in_the_singular(tmp_path):
    pair, arm = ("flat", "mono"), ("lite0", "lwf", "canonical", None, "")
    rows = [row for row in campaign()[0] if row.method == PRE]
    rows += [Accuracy(*arm, i, j, 100, BEFORE[j] + 1) for i in pair for j in (*pair, "up")]
    mri = [Mri(*arm, 1.0, 0.0, 2.0)]
    models = standings(rows, mri, sets=pair, upstream="up", methods=METHODS)
    path = page.write(tmp_path, title="t", models=models, upstream="up", settings={})
    text = Balanced(path.read_text("utf-8")).text
    assert "LwF gains most on the one set a model was not fine-tuned on" in text
    assert "One method starts from" in text and "is evaluated on the other; this" in text
    assert "over the 1 other set, of accuracy" in text and "one sets" not in text
    assert "in accuracy on the 1 other set, in points" in table(models)
    assert (
        page.finding(replace(models[0], lines=()))
        == "No method has been fine-tuned on both sets yet."
    )


def test_several_models_share_one_page(tmp_path):
    first, second = campaign(), campaign(model="vit", seed=1)
    html = write(tmp_path, first[0] + second[0], first[1] + second[1])
    assert re.findall(r'<h2 class="model">(.*?)</h2>', html) == ["lite0", "vit"]
    assert "Mean robustness improvement by pre-trained model" in Balanced(html).text


def test_a_campaign_without_any_change_makes_a_page(tmp_path):
    rows, mri = campaign()
    flat = [replace(row, accuracy=50.0) for row in rows if row.evaluated_on != "up"]
    still = [replace(row, mri=0.0, mri_low=0.0, mri_high=0.0) for row in mri]
    text = Balanced(write(tmp_path, flat, still)).text
    assert "What is forgotten upstream" not in text and "nan" not in text.lower()


def test_what_was_not_measured_is_not_claimed(tmp_path):
    rows, mri = campaign()
    assert "no hold-out" in write(tmp_path, rows, mri, holdout=False)
    assert "on its own hold-out" in write(tmp_path, rows, mri)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contact_sheet must be the bytes of a PNG"):
        write(tmp_path, *campaign(), contact_sheet=b"GIF89a")
    with pytest.raises(ValueError, match="nothing to report"):
        write(tmp_path, [], [])
    assert list(tmp_path.iterdir()) == []


@given(st.floats(-100, 100), st.floats(0, 150), st.integers(2, 8))
def test_ticks_hold_the_range_in_few_round_steps(low, width, count):
    found = ticks(low, low + width, count)
    assert found[0] <= low + 1e-6 and found[-1] >= low + width - 1e-6
    assert 2 <= len(found) <= count + 3
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert float(f"{steps[0]:.0e}") == pytest.approx(steps[0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_ticks_know_no_units(scale):
    assert ticks(scale, 2 * scale) == pytest.approx([scale * x for x in ticks(1.0, 2.0)])
    alike = ticks(scale, scale)
    assert alike[0] < scale < alike[-1] <= 2 * scale
    assert ticks(0.0, 0.0)[0] < 0 < ticks(0.0, 0.0)[-1]


@pytest.mark.parametrize("high", [0.013, 0.4, 1.0, 3.0, 17.0, 250.0])
def test_axes_and_legends_print_what_they_mark(high):
    axis = ticks(0.0, high)
    printed = ET.fromstring(charts.bar_axis(axis)).findall("text")
    values = [float((text.text or "").replace("−", "-")) for text in printed]
    assert values == pytest.approx(axis)
    end = charts.scale_end([high])
    labels = [text.text for text in ET.fromstring(charts.legend(end, "own")).findall("text")]
    values = [float((text or "0").replace("−", "-")) for text in labels[0:9:2]]
    assert values == [-end, -end / 2, 0, end / 2, end] and end >= high


@given(st.floats(-1e3, 1e3))
def test_signs_and_tints(value):
    text = signed(value)
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.0501)
    assert text == "0.0" or text[0] in "+−"
    kind, opacity = charts.tint(value, charts.scale_end([value]))
    assert kind == ("gain" if value >= 0 else "loss") and 0 <= opacity <= charts.FULL


def luminance(rgb) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["gain-fill", "loss-fill"])
def test_numbers_can_be_read_on_the_strongest_tint(mode, kind):
    css = page.TEMPLATE.read_text("utf-8")

    def colour(name: str) -> np.ndarray:
        value = re.findall(rf"--{name}: ([^;]+);", css)[mode]
        if value.startswith("#"):
            return np.array([int(value[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        return np.array([int(x) for x in value.split()]) / 255

    fill = charts.FULL * colour(kind) + (1 - charts.FULL) * colour("paper")
    dark, light = sorted((luminance(fill), luminance(colour("ink"))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_benchmarks_sets_head_columns_in_full():
    sets = recipe.load("imagenet_rib").dataset.sets
    row = ["Visual prompt", *["-12.4"] * 9, "[-12.5, -10.2]"]
    text = console.text("", ["", *map(set_head, sets), "mRI", "95% interval"], [row])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    heads = "\n".join(lines[:2]).split()
    assert heads.count("IN") == 7 and {"v2", "objectnet", "cartoon", "interval"} <= set(heads)
