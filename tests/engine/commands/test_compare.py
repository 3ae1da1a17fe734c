"""`rib compare` on a campaign, its copy, and tables."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats

import engine
from engine import cli
from engine.measures.score_tables import read_scores
from helpers import campaigns
from helpers.endings import refused

WRITERS: dict[str, Callable[[pandas.DataFrame, Path], object]] = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "parquet": lambda rows, path: rows.to_parquet(path),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
}
TABLES = "import sys, engine; engine.compare(*sys.argv[1:]); assert 'torch' not in sys.modules"


@pytest.mark.slow
def test_rows_have_the_numbers_of_the_report_and_a_copy_is_equal(
    folder, finished, grid, tmp_path, monkeypatch, capsys
):
    campaign = finished / "shapes"
    report = campaigns.rows(campaign / "report" / "comparisons.csv")
    found = engine.compare(f"{campaign}/fine_tune", f"{campaign}/linear_probe")
    expected = {
        row["evaluated_on"]: row
        for row in report
        if (row["method"], row["against_method"]) == ("fine_tune", "linear_probe")
    }
    assert found["set"].tolist() == [*expected]
    for row in found.to_dict("records"):
        of_report = expected[row["set"]]
        turned = [-row["difference"], -row["high"], -row["low"], row["p"]]
        names = ("difference_pts", "difference_low", "difference_high", "p")
        assert turned == pytest.approx([float(of_report[name]) for name in names], rel=1e-6)
    copied = shutil.copytree(finished, tmp_path / "runs") / "shapes"
    between = engine.compare(campaign, copied)
    assert not between["difference"].any() and between["p"].min() == pytest.approx(1)
    assert between["a"].nunique() == 3, "each method with itself"
    across = engine.compare(f"{campaign}/fine_tune", f"{copied}/linear_probe")
    assert across["difference"].tolist() == pytest.approx(found["difference"].tolist())
    cell = engine.compare(*(f"{campaign}/{of}/few" for of in ("fine_tune", "linear_probe")))
    ri = {
        row["method"]: float(row["value"])
        for row in campaigns.rows(campaign / "report" / "intervals.csv")
        if (row["quantity"], row["downstream"], row["alpha"]) == ("RI", "few", "")
    }
    assert cell["difference"].iloc[0] == pytest.approx(ri["linear_probe"] - ri["fine_tune"])
    assert cell["quantity"].iloc[0] == "RI, points" and len(cell) == 3
    capsys.readouterr()
    assert cli.main(["compare", str(campaign), str(copied)]) == 0
    shown = capsys.readouterr().out
    assert "settings: the same" in shown and "versions: the same" in shown
    for words, message in (
        ([f"{campaign}/lora", str(copied)], "has no 'lora'"),
        ([f"{campaign}/fine_tune/few", f"{copied}/fine_tune"], "cells of one downstream dataset"),
        ([f"{campaign}/fine_tune", str(tmp_path / "x.csv")], "nor a finished campaign"),
    ):
        assert message in refused("compare", *words)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("numbered", [False, True])
def test_two_folders_of_another_librarys_predictions_are_compared(tmp_path, capsys, kind, numbered):
    """With the classes of images and predictions, as a loop over a data loader writes them."""
    rng, change = np.random.default_rng(0), {}
    for name in ("sketch", "renditions"):
        right = rng.random((2, 400)) < [[0.5], [0.8]]
        change[name] = np.diff(100.0 * right, axis=0)[0]
        label = rng.integers(0, 9, 400)
        rows = pandas.DataFrame({"image": range(400), "source": np.arange(400) // 4})
        for model, is_right in zip(("old", "new"), right, strict=True):
            rows = rows.assign(label=label, prediction=(label + ~is_right) % 9, confidence=0.5)
            of_model = rows if numbered else rows.astype(str).assign(confidence=0.5)
            (tmp_path / model).mkdir(exist_ok=True)
            WRITERS[kind](of_model.sample(frac=1), tmp_path / model / f"{name}.{kind}")
    words = [str(tmp_path / "old"), str(tmp_path / "new"), "--csv", str(tmp_path / "out.csv")]
    assert cli.main(["compare", *words, "--at-least", "20"]) == 0
    assert "Accepted: the interval begins at" in capsys.readouterr().out
    found = pandas.read_csv(tmp_path / "out.csv", keep_default_na=False).set_index("set")
    assert found.index.tolist() == ["", "renditions", "sketch"]
    assert found["sources"].tolist() == [100] * 3 and found["images"].tolist() == [800, 400, 400]
    for name, of_images in change.items():
        expected = stats.ttest_1samp(of_images.reshape(100, 4).mean(axis=1), 0)
        low, high = expected.confidence_interval(0.95)
        row = found.loc[name, ["difference", "low", "high"]].tolist()
        assert row == pytest.approx([of_images.mean(), low, high])


@pytest.mark.parametrize(("label", "missing"), [(np.nan, "label"), (2.0, "prediction")])
def test_a_missing_class_is_no_wrong_answer(label, missing, tmp_path):
    rows = {"image": ["a", "b"], "label": [1.0, label], "prediction": [1.0, np.nan]}
    pandas.DataFrame(rows).to_parquet(table := tmp_path / "t.parquet")
    assert f"row 2: {missing} nan is missing" in refused("compare", *2 * [str(table)])


def test_numbered_images_leave_other_texts_as_they_are(tmp_path):
    lines = [f'{{"image": {k}, "source": "2020-01-0{k}", "correct": 1}}' for k in (1, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read_scores(tmp_path / "a.jsonl").rows
    assert rows["source"].tolist() == ["2020-01-01", "2020-01-02"]
    assert rows["image"].tolist() == ["1", "2"]


def test_a_verdict_and_an_exit_code_come_from_the_interval(tmp_path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    for path, right in ((good, 90), (bad, 60)):
        rows = "".join(f"{k},{int(k < right)}\n" for k in range(100))
        path.write_text(f"image,correct\n{rows}")
    for first, second, least, code in (
        (bad, good, "0", 0),
        (bad, good, "29", 1),
        (good, bad, "-1", 1),
        (good, bad, "-50", 0),
        (good, good, "0", 0),
    ):
        words = ["compare", str(first), str(second), "--at-least", least]
        assert cli.main([*words, "--csv", str(tmp_path / "out.csv"), "--force"]) == code
    shown = capsys.readouterr().out
    assert f"{good} and {good} have equal scores on all 100 images." in " ".join(shown.split())
    assert cli.main(["compare", str(bad), str(good)]) == 0
    shown = capsys.readouterr().out
    assert f"{good} is better than {bad} by 30.00" in " ".join(shown.split())
    assert "Test: paired t test; " in " ".join(shown.split())
    assert "give at least two" in refused("compare", str(bad))
    subprocess.run([sys.executable, "-c", TABLES, bad, good], check=True)
