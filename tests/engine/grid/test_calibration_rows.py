"""A campaign with `evaluate.calibration`: its numbers, by timm's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import campaigns
import grids
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from scipy import optimize, special

from engine.errors import RecipeError
from engine.grid import campaign, record
from engine.measures import behaviour
from engine.measures.predictions import SetPredictions

folder, finished, grid = campaigns.folder, campaigns.finished, grids.grid
WORDS = ["evaluate.calibration=true", "downstreams=[outline]"]


@pytest.mark.slow
def test_a_campaign_stores_what_its_calibration_errors_need(folder: Path, finished: Path):
    report = campaigns.run(folder, *WORDS)
    after = record.find(str(folder / "shapes.yaml"), [f"runs={finished}", *WORDS])
    rows = campaigns.rows(report / "behaviour.csv")
    for name in ("scaled_calibration_error", "classwise_calibration_error"):
        assert all(row[name] for row in rows)
    shown = campaigns.rows(report / "tables" / "explorer.csv")[0]
    assert shown["scaled_calibration_error_pct"] and shown["classwise_calibration_error_pct"]

    # Twin: timm's logits, a temperature by SciPy on what the column held out, and the definition.
    (evaluation,) = (
        row for row in after.evaluations if (row.method, row.evaluated_on) == ("fine_tune", "few")
    )
    (cell,) = (finished / "store" / "cells").glob("fine_tune-outline-*")
    state = load_file(cell / "weights.safetensors")
    z, truth = (x.numpy() for x in campaigns.by_timm(state, folder, "outline"))
    (own,) = (
        row.path
        for row in after.evaluations
        if (row.method, row.evaluated_on) == ("fine_tune", "outline")
    )
    held_out = pq.read_table(own)["index"].to_numpy()
    assert 0 < len(held_out) < len(truth)

    def nll(log_t: float) -> float:
        scaled = special.log_softmax(z[held_out] / np.exp(log_t), axis=1)
        return -float(scaled[np.arange(len(held_out)), truth[held_out]].mean())

    least: Any = optimize.minimize_scalar(nll, bounds=np.log([0.25, 16]), method="bounded")
    t = float(np.exp(least.x))
    z, truth = (x.numpy() for x in campaigns.by_timm(state, folder, "few"))
    possible = [grids.CLASSES.index(name) for name in grids.FEW]
    index = pq.read_table(evaluation.path)["index"].to_numpy()
    confidence = special.softmax(z[index][:, possible] / t, axis=1).max(axis=1)
    on_few = SetPredictions()
    stored = on_few.add(evaluation.path)._replace(scaled=confidence)
    (row,) = (row for row in rows if (row["method"], row["evaluated_on"]) == ("fine_tune", "few"))
    expected = behaviour.scaled_calibration_error(stored, on_few.codes)
    assert float(row["scaled_calibration_error"]) == pytest.approx(expected, abs=0.5)
    p, errors = special.softmax(z[index][:, possible], axis=1), []
    for place, label in enumerate(possible):
        bins = np.clip(np.ceil(p[:, place] * 15).astype(int), 1, 15)
        gaps = p[:, place] - (truth[index] == label)
        errors.append(sum(abs(gaps[bins == b].sum()) for b in range(1, 16)) / len(index))
    classwise = float(row["classwise_calibration_error"])
    assert classwise == pytest.approx(100 * np.mean(errors), abs=0.01)


def test_calibration_needs_images_that_no_model_trains_on(folder: Path):
    words = [*WORDS, "dataset.holdout=0", "evaluate.split=all", f"runs={folder}"]
    with pytest.raises(RecipeError, match=r"evaluate\.calibration: .* set dataset\.holdout above"):
        campaign.plan(str(folder / "shapes.yaml"), words)
