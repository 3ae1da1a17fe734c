"""Checkpoints of other programs as a campaign's cells, in the forms that the programs write."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import cli
from engine.campaigns.make_plan import make_plan
from engine.errors import RecipeError
from engine.exchange import listed_models
from engine.methods.beyond.checkpoint import HEADER, read_table
from engine.recipe.overrides import parsed
from helpers import campaigns
from helpers.campaigns import finished, folder  # noqa: F401

SETS = ("outline", "tinted", "few")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    """The fine-tuned models of the campaign as files of other programs, and their table."""
    place = tmp_path_factory.mktemp("theirs")
    rows = []
    for name in SETS:
        (cell,) = (finished / "store" / "cells").glob(f"fine_tune-{name}-*")
        state = load_file(cell / "weights.safetensors")
        head = {k: state.pop(f"head.{k}") for k in ("weight", "bias")}
        if name == "outline":  # Lightning's names in a state dict of torch.save
            whole = state | {f"head.{k}": t for k, t in head.items()}
            torch.save({"state_dict": {f"model.{k}": t for k, t in whole.items()}}, place / "a.pt")
            rows.append(["ft a", "fine_tune", name, "0", "a.pt", ""])
        elif name == "tinted":  # DataParallel's names, and the head in a file of its own
            torch.save({f"module.{k}": t for k, t in state.items()}, place / "b.pt")
            torch.save(head, place / "b-head.pt")
            rows.append(["ft b", "fine_tune", name, "0", "b.pt", "b-head.pt"])
        else:
            save_file(state | {f"head.{k}": t for k, t in head.items()}, place / "c.safetensors")
            rows.append(["ft c", "fine_tune", name, "0", "c.safetensors", ""])
    write(place, rows)
    return place


def write(place: Path, rows: list[list[str]]) -> Path:
    with (place / "checkpoints.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *rows])
    return place / "checkpoints.csv"


def changed(place: Path, number: int, **values: str) -> None:
    """Change a line of the table."""
    lines = read_table(place / "checkpoints.csv")
    rows = [
        [of.name, of.method, of.downstream, str(of.seed), of.file.name, of.head.name if of.head else ""]
        for of in lines
    ]
    for key, value in values.items():
        rows[number][HEADER.split(",").index(key)] = value
    write(place, rows)


def test_a_folder_of_checkpoints_becomes_a_report(folder, finished, exported, tmp_path, monkeypatch):
    """Without training, with the numbers of the campaign that trained them."""
    campaigns.in_this_process(monkeypatch)
    runs, file = tmp_path / "runs", folder / "shapes.yaml"
    words = ["campaign", str(file), f"runs={runs}", "--checkpoints", str(exported / "checkpoints.csv")]
    assert cli.main(words) == 0
    (report,) = runs.glob("shapes*/report")
    (trained,) = finished.glob("shapes*/report")
    ours, theirs = (campaigns.rows(place / "accuracy.csv") for place in (report, trained))
    key = ("method", "alpha", "downstream", "evaluated_on")
    known = {tuple(row[k] for k in key): float(row["accuracy"]) for row in theirs}
    found = {tuple(row[k] for k in key): float(row["accuracy"]) for row in ours}
    methods = {of for of, *_ in found}
    assert methods == {"pre", "fine_tune", "wise_ft"}, methods
    assert len(found) > 30, len(found)
    assert found == pytest.approx({k: v for k, v in known.items() if k[0] in methods}, abs=1e-6)
    assert not [*(runs / "store").glob("cells/*/history.json")], "nothing was trained"
