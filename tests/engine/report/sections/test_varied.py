"""The sections on a sweep and on varied keys: figures, and nothing is chosen by test sets."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from engine.campaigns.record import MethodRow
from engine.measures.rows import PLAIN, PRE, Setting
from engine.report import headline, sections, tuning
from engine.report.results import Results
from engine.report.section import Section
from engine.report.sections import varied
from helpers import stores
from helpers.made_results import TITLES, drawn, of_arms, of_evaluations
from helpers.stores import SETS, setting

LR = {"optimizer.lr=0.001": 40, "optimizer.lr=0.01": 50, "optimizer.lr=0.1": 70}
# Accuracy by method and rate: held out of the set fine-tuned on, and on other sets.
ACCURACIES = {
    ("fine_tune", "1e-4"): (60, 80), ("fine_tune", "3e-4"): (70, 60),
    ("fine_tune", "1e-3"): (90, 40), ("lwf", "1e-4"): (80, 70),
    ("lwf", "3e-4"): (60, 90), ("lwf", "1e-3"): (70, 50),
}  # fmt: skip
SHARED = {"method.variant": "original", "optimizer.name": "adamw"}
ROWS = [
    MethodRow(method, {**SHARED, "optimizer.lr": lr})
    for method, lr in (("fine_tune", 3e-4), ("lwf", 0.001))
]


def swept(settings: dict[str, float], rows: Sequence[MethodRow] = ()) -> Results:
    """EWC in each setting, whose accuracy elsewhere is the setting's; on the held-out images of the
    set fine-tuned on it is the lower the higher that is."""
    arms = {("ewc", None, text): (120 - of, of) for text, of in settings.items()}
    return of_arms(
        arms, methods={"ewc": "EWC"}, sweep=[*map(setting, settings)], holdout=True, rows=rows
    )


def table(section: Section, name: str) -> pandas.DataFrame:
    (made,) = [table.data for table in section.tables if table.name == name]
    return made


def test_a_configuration_is_chosen_on_held_out_images_only() -> None:
    given = swept(LR)
    section, tuned = varied.sweep(given), varied.section(given)
    made, choices = section.tables[0].data, table(tuned, "tuning-choices")
    assert list(made["optimizer.lr"]) == [0.001, 0.01, 0.1], "the order of the sweep"
    assert made["mRI_pts"].tolist() == pytest.approx([-10, 0, 20])
    assert (made["mRI_low"] < made["mRI_pts"]).all()
    assert (made["mRI_pts"] < made["mRI_high"]).all()
    assert list(choices["setting"]) == ["optimizer.lr=0.001"] * 3, "highest on held-out images"
    assert "select on the test datasets" in section.text and "means over 1 seed" in section.text
    assert headline.heading("the title", given) == (
        "Tuned over 3 settings on held-out images, EWC has an mRI of −10.0 points."
    )
    assert "Every configuration fine-tunes the pretrained lite0 on each" in headline.lead(given)
    keys = [each.key for each in sections.of(given)]
    assert keys[:2] == ["sweep", "varied"] and "ranking" not in keys
    (svg,) = drawn(section).values()
    assert svg.count('aria-roledescription="bar"') == 3


def test_configurations_are_named_by_what_varies() -> None:
    settings = {f"method.lam={a},train.epochs={b}": 40 for a in ("1.0", "2.0") for b in (1, 3)}
    section = varied.sweep(swept(settings))
    assert list(section.figures[0].data["method"])[1] == "lam 1, epochs 3"
    assert "of EWC in method.lam, train.epochs" in section.text


def two_methods(key: str = "optimizer.lr", **values: Any) -> Results:
    arms = {(method, None, f"{key}={rate}"): of for (method, rate), of in ACCURACIES.items()}
    return of_arms(arms, **{"holdout": True, "rows": ROWS} | values)


def test_each_method_has_the_setting_that_is_best_on_held_out_images() -> None:
    section = varied.section(two_methods())
    assert section.heading == (
        "Tuning on held-out images changes mRI by −20.0 (FT) to +20.0 (LwF) points"
    )
    assert "is optimistic for the chosen settings (the highest of 3" in section.tables[1].caption
    methods, chosen = (table(section, name) for name in ("tuning", "tuning-choices"))
    assert dict(zip(chosen["method"], chosen["setting"], strict=True)) == {
        "FT": "optimizer.lr=0.001", "LwF": "optimizer.lr=0.0001"
    }  # fmt: skip
    assert len(chosen) == 2 * len(SETS)
    rows = methods.set_index("method")
    assert list(rows.index) == ["LwF", "FT"] and list(rows["settings"]) == [3, 3]
    # RI: 100 times the share on the other sets, less the pretrained model's 50.
    numbers = rows.drop(columns="settings").to_numpy().tolist()
    assert numbers[0] == pytest.approx([20, 0, 20, 80, 70])
    assert numbers[1] == pytest.approx([-10, 10, -20, 90, 70])
    rules = table(section, "tuning-rules").set_index(["rule", "method"])
    of_oracle = rules.loc["datasets of RI (not allowed)"]
    assert of_oracle.loc["LwF"].tolist() == pytest.approx([40, 60, 0])
    assert of_oracle.loc["FT"].tolist() == pytest.approx([30, 60, 0])
    of_report = rules.loc["all held-out images (this report)"]
    assert of_report.loc["LwF"].tolist() == pytest.approx([20, 80, 100])


def test_rules_choose_by_the_stored_predictions(tmp_path: Path) -> None:
    """The halves, computed again from each file's images: every second concept is a half."""
    rng, rates, evaluations = np.random.default_rng(0), (1e-4, 3e-4, 1e-3), []
    hits: dict[tuple[float | None, str, str, str], np.ndarray] = {}
    cells = [(None, PRE, "", on) for on in (*SETS, "up")]
    cells += itertools.product(rates, TITLES, SETS, (*SETS, "up"))
    for number, (rate, method, downstream, on) in enumerate(cells):
        path = tmp_path / f"{number}.parquet"
        hits[rate, method, downstream, on] = right = rng.random(60) < (0.5 if downstream else 0.4)
        pq.write_table(stores.table(right), path)
        varied_by = Setting({"optimizer.lr": rate} if rate else {})
        evaluations.append(replace(stores.cell(path, method, downstream, on), setting=varied_by))

    def ri(rate: float, method: str, i: str) -> float:
        others = [j for j in SETS if j != i]
        before, after = (
            [hits[*of, j].mean() for j in others] for of in ((None, PRE, ""), (rate, method, i))
        )
        return 100 * float(np.mean(after) - np.mean(before))

    found = tuning.tuned(of_evaluations(evaluations, holdout=True, rows=ROWS))
    half = (np.arange(60) // 2).astype(str)  # concepts, whose names are sorted as text
    is_first = np.isin(half, sorted(set(half), key=lambda name: f"concept-{name}")[::2])
    for method, title in TITLES.items():
        of_rule, accuracies, same = [], [], []
        for chooses, place in itertools.product((is_first, ~is_first), SETS):
            own = {rate: hits[rate, method, place, place] for rate in rates}
            best = max(rates, key=lambda rate: own[rate][chooses].mean())
            usual = max(rates, key=lambda rate: own[rate].mean())
            of_rule.append(ri(best, method, place))
            accuracies.append(100 * own[best][~chooses].mean())
            same.append(100 * (best == usual))
        rule = found.rules.query(f"method == '{title}' and rule.str.startswith('one half')")
        expected = [np.mean(of_rule), np.mean(accuracies), np.mean(same)]
        assert rule.iloc[0, 2:].tolist() == pytest.approx(expected)
    assert found.rules["same_choice_pct"].nunique() > 2, "the rules differ here"


def test_trials_are_choices_whose_values_are_listed() -> None:
    rows = [MethodRow("fine_tune", {}, [PLAIN, Setting({"optimizer.lr": 2e-4})])]
    arms = {("fine_tune", None, f"trial={k}"): of for k, of in enumerate([(60, 80), (70, 60)])}
    section = varied.section(of_arms(arms, holdout=True, rows=rows))
    assert set(table(section, "tuning-choices")["setting"]) == {"trial=1"}
    of_method = table(section, "tuning").iloc[0]
    assert of_method["default_mRI_pts"] == pytest.approx(30), "trial 0 is the recipe"
    assert of_method["tuned_mRI_pts"] == pytest.approx(10)
    assert table(section, "tuning-trials").values.tolist() == [["FT", 1, "optimizer.lr=0.0002"]]


def test_a_method_whose_plain_setting_was_not_tried_has_no_gain() -> None:
    section = varied.section(two_methods(rows=ROWS[1:]))
    gains = table(section, "tuning").set_index("method")["gain_pts"]
    assert np.isnan(gains["FT"]) and gains["LwF"] == pytest.approx(20)
    assert (
        section.heading == "Of 3 settings, 2 are best on held-out images for some method or dataset"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.lam", 2.0), ("optimizer.name", "adamw"), ("train.freeze_batchnorm", True),
        ("dataset.shots", 0), ("method.variant", "released"), ("train.epochs", 3),
    ],
)  # fmt: skip
def test_the_recipes_own_setting_is_found_whatever_kind_its_value_is(key: str, value: Any) -> None:
    other = "sgd" if isinstance(value, str) else not value if value in (True, 0) else value + 1
    shown = [str(Setting({key: each})) for each in (value, other)]
    made = swept({shown[0]: 50, shown[1]: 60}, [MethodRow("ewc", {key: value})])
    assert tuning.tuned(made).methods["default_mRI_pts"].tolist() == pytest.approx([0])
    unlike = swept({shown[0]: 50, shown[1]: 60}, [MethodRow("ewc", {"optimizer.eps": 1e-3})])
    assert tuning.tuned(unlike).methods["default_mRI_pts"].isna().all()


def test_no_sentence_names_the_setting_with_the_highest_mri() -> None:
    """LwF at 3e-4 has +40 points elsewhere, and held-out images do not choose it."""
    made = two_methods()
    assert headline.heading("the title", made).startswith("Tuned over 3 settings on held-out imag")
    assert headline.lead(made).startswith(
        "For each downstream dataset, each method has the setting"
    )
    headings = {each.key: each.heading for each in sections.of(made)}
    assert headings["ranking"] == "LwF ranks first by mRI, tuned on held-out images"
    unchosen = two_methods(holdout=False)
    assert headline.heading("the title", unchosen) == "the title"
    for results in (made, unchosen):
        texts = [headline.heading("", results), headline.lead(results)]
        parts = {each.key: each for each in sections.of(results)}
        texts += [parts[key].heading for key in ("ranking", "trade-off", "differences")]
        assert not [text for text in texts if "0.0003" in text and "mRI ranges from" not in text]
        assert not [text for text in texts if "told from" in text]


@pytest.mark.parametrize("values", [{"holdout": False}, {"key": "dataset.shots"}])
def test_other_campaigns_are_not_tuned(values: dict[str, Any]) -> None:
    section = varied.section(two_methods(**values))
    assert not [
        table for table in section.tables if "tuning" in table.name or "chosen" in table.data
    ]


def test_a_key_with_one_value_has_no_section() -> None:
    for key in ("optimizer.lr", "train.epochs"):
        assert varied.section(of_arms({("fine_tune", None, f"{key}=1"): (60, 60)})) is None


def test_a_methods_rate_is_marked_where_held_out_images_choose_it() -> None:
    section = varied.section(two_methods())
    rates = table(section, "rates")
    marked = rates[rates["chosen"] == "held out"]
    assert list(zip(marked["method"], marked["value"], strict=True)) == [
        ("FT", "0.001"), ("LwF", "0.0001")
    ]  # fmt: skip
    assert "Highest mRI in 3 settings: LwF in 2 and FT in 1." in section.text
    words = "By learning rate, fine-tuning's mRI ranges from −10.0 (0.001) to +30.0 (0.0001)"
    assert words in section.text, "the heading is the tuned methods'"
    assert varied.section(two_methods(holdout=False)).heading == words


def in_settings(settings: dict[str, float]) -> Results:
    """FT and LwF in each setting, whose accuracy elsewhere is the setting's."""
    arms = {(method, None, of): (95.0, settings[of]) for of in settings for method in TITLES}
    return of_arms(arms)


def test_the_heading_has_the_range_of_fine_tuning():
    section = varied.section(in_settings({"dataset.shots=0": 90, "dataset.shots=1": 20}))
    row = section.tables[0].data.iloc[0]
    assert row["method"] == "FT" and row["value"] == "1"
    assert row["mRI_low"] < row["mRI_pts"] < row["mRI_high"]
    assert row["downstream_accuracy_pct"] == pytest.approx(95)
    assert section.heading == (
        "By images per class, fine-tuning's mRI ranges from −30.0 (1) to +40.0 (all)"
    )


def test_figures_draw_all_after_the_largest_number_and_name_methods_once():
    section = varied.section(in_settings({f"dataset.shots={k}": 50 for k in (0, 1, 4)}))
    (mri,) = section.figures
    assert mri.name == "shots-lite0"
    assert list(mri.data["x"]) == [1, 4, 8] * 2
    assert list(mri.data["value"]) == ["1", "4", "all"] * 2
    assert set(mri.data["method"]) == {"FT", "LwF"}
    axis = mri.spec["encoding"]["x"]
    assert axis["scale"]["type"] == "log" and axis["axis"]["values"] == [1, 4, 8]
    assert "datum.value === 8.0 ? 'all'" in axis["axis"]["labelExpr"]


def test_curves_are_in_order_with_one_for_each_of_what_else_varies():
    settings = [f"dataset.fraction={p},train.epochs={e}" for e in (1, 3) for p in (1.0, 0.1)]
    made = in_settings(dict.fromkeys(settings, 50))
    assert varied.points(made, "dataset.shots").empty
    points = varied.points(made, "dataset.fraction")
    fine_tune = points[points["key"] == "fine_tune"]
    expected = [(f"train.epochs={e}", fraction) for e in (1, 3) for fraction in (0.1, 1.0)]
    assert list(zip(fine_tune["rest"], fine_tune["x"], strict=True)) == expected
    rest = ("epochs 1", "epochs 3")
    assert set(points["method"]) == {f"{method}, {x}" for method in ("FT", "LwF") for x in rest}
