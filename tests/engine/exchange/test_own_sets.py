"""A finished campaign's rows on a user's set: all, by timm's numbers, and nothing is trained."""

import itertools
import shutil
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import cli
from helpers import campaigns
from helpers.campaigns import SETS
from helpers.evaluations import by_timm
from helpers.grids import Grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(finished, folder) -> Path:
    """The folder of a finished campaign, with sets of the user's beside its own."""
    shutil.copytree(folder / "images" / "few", folder / "mine" / "few")
    shutil.copytree(folder / "images" / "tinted", folder / "mine" / "new")
    return folder


def evaluate(place: Path, *words: str) -> int:
    command = ["evaluate", "--campaign", str(place / "shapes.yaml"), *words]
    return cli.main([*command, f"runs={place / 'runs'}"])


def accuracy(grid: Grid, state: dict[str, torch.Tensor], name: str) -> float:
    """By timm in float64, unmasked."""
    logits_NC, truth_N = by_timm(grid, name, state, mask="none")
    return 100 * (logits_NC.argmax(1) == truth_N).double().mean().item()


def state(place: Path, cell: str) -> dict[str, torch.Tensor]:
    (path,) = (place / "runs" / "store" / "cells").glob(f"{cell}-*")
    return load_file(path / "weights.safetensors")


def test_all_rows_are_judged_and_nothing_else_changes(place, grid, capsys):
    store, report = place / "runs" / "store" / "cells", place / "runs" / "shapes" / "report"
    cells = sorted(store.iterdir())
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert evaluate(place, "--sets", f"other={place}/mine/few", f"{place}/mine/new") == 0
    printed = capsys.readouterr().out
    assert "RI, mRI and the report of shapes do not change" in printed
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(store.iterdir()) == cells

    rows = campaigns.rows(report / "accuracy-on-other.csv")
    in_table = [method for method, _ in itertools.groupby(row["method"] for row in rows)]
    assert in_table == ["pretrained", *campaigns.METHODS], "in the order of the other tables"
    in_campaign = campaigns.rows(report / "accuracy.csv")
    arm = itemgetter("model", "method", "variant", "alpha", "downstream")
    assert {arm(row) for row in rows} == {arm(row) for row in in_campaign}
    of_set = itemgetter("evaluated_on", "images", "mask", "classes")
    assert {of_set(row) for row in rows} == {("other", "21", "none", "5")}
    assert rows[0]["method"] == "pretrained" and rows[0]["change_pts"] == ""
    start = state(place, "linear_probe-upstream")
    assert float(rows[0]["accuracy_pct"]) == pytest.approx(accuracy(grid, start, "few"), abs=1e-5)
    for row in rows[1:]:
        moved = float(row["accuracy_pct"]) - float(rows[0]["accuracy_pct"])
        assert (
            float(row["change_pts"]) == pytest.approx(moved, abs=1e-5) and row["change_low"] == ""
        )
        assert f"{float(row['accuracy_pct']):.1f}" in printed
    by_arm = {(r["method"], r["alpha"], r["downstream"]): float(r["accuracy_pct"]) for r in rows}
    for downstream in SETS:
        tuned = state(place, f"fine_tune-{downstream}")
        half = {k: (start[k] + tuned[k]) / 2 for k in start}
        for method, alpha, weights in (("fine_tune", "", tuned), ("wise_ft", "0.5", half)):
            expected = accuracy(grid, weights, "few")
            assert by_arm[method, alpha, downstream] == pytest.approx(expected, abs=1e-5)
    assert len(campaigns.rows(report / "accuracy-on-new.csv")) == len(rows)


def test_a_mask_is_named_and_intervals_are_those_of_changes(place, tmp_path):
    out = tmp_path / "sure.csv"
    words = ("--sets", f"sure={place}/mine/few", "--mask", "present", "--intervals")
    assert evaluate(place, *words, "--out", str(out)) == 0
    pre, *rows = campaigns.rows(out)
    assert (pre["mask"], pre["classes"]) == ("present", "3")
    for row in rows:
        low, change, high = (float(row[k]) for k in ("change_low", "change_pts", "change_high"))
        assert low <= change <= high
        if row["method"] == "wise_ft" and float(row["alpha"]) == 0:
            assert low == high == 0, "the pretrained model itself"


def test_a_damaged_image_is_skipped_as_the_error_suggests(place, tmp_path, capsys):
    damaged = shutil.copytree(place / "mine" / "new", tmp_path / "damaged")
    next(damaged.glob("*/*.png")).write_bytes(b"")
    words = ("--sets", str(damaged), "--out", str(tmp_path / "skipped.csv"))
    assert evaluate(place, *words) == 2
    assert "skip them: dataset.undecodable=skip" in capsys.readouterr().err
    assert evaluate(place, *words, "dataset.undecodable=skip") == 0
    assert {row["images"] for row in campaigns.rows(tmp_path / "skipped.csv")} == {"34"}


def test_what_is_not_possible_is_refused_before_any_work(place, capsys, tmp_path):
    new_set = f"{place}/mine/new"
    for words, message in (
        (("--sets", f"{place}/mine/few"), "few is a dataset of the campaign"),
        (("--sets", new_set, "--out", str(tmp_path), "--force"), "is a folder, not a file: choose"),
        (("--sets", new_set, "--arch", "test_vit"), "--arch requires --models"),
        (("--sets", new_set, "optimizer.lr=0.5"), "no finished run"),
    ):
        assert evaluate(place, *words) == 2
        assert message in capsys.readouterr().err
