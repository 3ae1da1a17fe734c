"""Folders of runs as the benchmark's released code writes them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.errors import RecipeError
from engine.measures.tables import rows
from engine.report.published import read_released
from helpers import made_results

MODEL, SETS = "vit_b16_augreg_in21k", ("imagenet_r", "objectnet", "imagenet_c")
FOLDERS = {"imagenet_r": "imagenet-r", "objectnet": "objectnet", "imagenet_c": "imagenet-c"}


def run(
    runs: Path, method: str, dataset: str, accuracies: dict[str, float], trial: int = 1
) -> Path:
    """A run's file, with its names and values as the code writes them."""
    name = f"{method}_{dataset}_vit_base_16_imagenet_sgd_lr_0.001_decay_0_b64E10_warmup_196"
    file = runs / f"{name}_trial_{trial}_no_split" / "results.json"
    file.parent.mkdir(parents=True)
    written = {"imagenet/val": 80.0, "imagenet-r": accuracies["imagenet_r"], "objectnet-1.0": 0.1}
    written["objectnet-v2"] = accuracies["objectnet"]
    for number in range(15):
        for severity in (-2, -1, 0, 1, 2):
            value = accuracies["imagenet_c"] + severity
            written[f"/imagenet-c/noise_{number}/{severity + 3}"] = value
        written[f"/imagenet-c/noise_{number}"] = accuracies["imagenet_c"]
    file.write_text(json.dumps(written))
    return file


def test_its_mri_stands_beside_ours_over_the_columns_of_the_campaign(tmp_path):
    rng = np.random.default_rng(0)
    before = dict(zip(SETS, rng.uniform(30, 60, 3), strict=True))
    run(tmp_path, "PRE", "imagenet-r", before)
    expected = {}
    for method, key in (("", "fine_tune"), ("Soup-PRE-", "wise_ft"), ("ewc", "ewc")):
        ri = []
        for down in SETS:
            after = dict(zip(SETS, rng.uniform(30, 60, 3), strict=True))
            run(tmp_path, method, FOLDERS[down], after)
            ri.append(np.mean([after[name] - before[name] for name in SETS if name != down]))
        expected[key] = np.mean(ri)
    published = read_released(tmp_path)
    methods = (("fine_tune", "canonical", None), ("ewc", "paper", None), ("wise_ft", "paper", 0.5))
    for sets, is_known in ((SETS, True), (("imagenet_r", "imagenet_a"), False)):
        on = (*sets, "imagenet_val")
        cells = [(MODEL, "pre", "", None, "", "", name, 50.0) for name in on]
        of_method = [(MODEL, *method, "", down) for method in methods for down in sets]
        cells += [(*column, name, 55.0) for column in of_method for name in on]
        made = made_results.of_cells(
            cells, sets=list(sets), downstreams=list(sets), upstream="imagenet_val", holdout=False
        )
        made = dataclasses.replace(made, published=published)
        found = {row.key: made.published_mri(row) for row in rows(made.arms)}
        assert found == (pytest.approx(expected) if is_known else dict.fromkeys(expected))


def test_what_is_no_folder_of_runs_is_refused_with_the_file(tmp_path):
    with pytest.raises(RecipeError, match="has no folder of a run"):
        read_released(tmp_path)
    accuracies = dict.fromkeys(SETS, 50.0)
    first = run(tmp_path, "ewc", "imagenet-r", accuracies)
    second = run(tmp_path, "ewc", "imagenet-r", accuracies, trial=2)
    with pytest.raises(RecipeError, match=r"trial_1.* and .*trial_2.* keep one"):
        read_released(tmp_path)
    second.rename(second.with_name("other.json"))
    unknown = run(tmp_path / "unknown", "ewc", "imagenet-r", accuracies).parent
    for weights in ("sam", "miil"):
        copy = unknown.with_name(unknown.name.replace("imagenet_sgd", f"{weights}_sgd"))
        shutil.copytree(unknown, copy)
    shutil.rmtree(unknown)
    with pytest.raises(RecipeError, match="or none of a known model"):
        read_released(tmp_path / "unknown")
    shutil.rmtree(tmp_path / "unknown")
    first.write_text('{"imagenet-r": "high"}')
    with pytest.raises(RecipeError, match=re.escape(str(first))):
        read_released(tmp_path)
