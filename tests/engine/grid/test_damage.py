"""No dead end: whatever of a finished campaign is deleted or damaged, the next command heals it.

Either it ends with the numbers of before, or with a line that names the file and a remedy; the
remedy is done, and then it ends with those numbers. `make test` tries a case of each kind of file,
`make exhaustive` all cases, `make faults` random ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import campaigns
import grids
import pytest
from damage import cut, empty, flip
from endings import follow

from engine import cli

folder, finished_runs, grid = campaigns.folder, campaigns.finished, grids.grid
pytestmark = pytest.mark.slow
Damage = Callable[[Path], object]


def wrong_type(path: Path) -> None:
    path.write_text("[]")


def folder_of(path: Path) -> None:
    shutil.rmtree(path.parent)


def swap(path: Path) -> None:
    """Two evaluations of the record change places: the checksum of every prediction still fits."""
    values = json.loads(path.read_text())
    a, b = [row for row in values["evaluations"] if row["downstream"] == "few"][:2]
    a["path"], b["path"] = b["path"], a["path"]
    path.write_text(json.dumps(values, indent=1))


def more(path: Path) -> None:
    path.write_text(json.dumps({"more": 1, **json.loads(path.read_text())}))


FILE = (flip, Path.unlink, cut, empty)
JSON = (*FILE, wrong_type, more)
DAMAGED = {  # of a kind of file `make test` tries the first damage, `make exhaustive` the others
    "store/predictions/fine_tune-outline-on-few-*/part-00000.parquet": (*FILE, folder_of),
    "store/predictions/fine_tune-outline-on-few-*/done.json": (cut, wrong_type),
    "store/cells/fine_tune-outline-*/weights.safetensors": (flip, folder_of),
    "store/cells/fine_tune-outline-*/done.json": (Path.unlink, cut),
    "store/cells/wise_ft-outline-*/cell.json": (folder_of, more),
    "shapes/plans/*/evaluations.json": (swap, *JSON),
    "shapes/plans/*/plan.json": (empty, more),
    "shapes/report/accuracy.csv": (flip, empty),
    "store/predictions/linear_probe-upstream-on-few-*/part-00000.parquet": (None, folder_of),
    "store/cells/linear_probe-upstream-*/weights.safetensors": (None, folder_of),
    "shapes/plans/*/progress/report.json": (None, cut),
    "shapes/plans/*/done/report": (None, Path.unlink),
    "shapes/plans/*/report.sha256": (None, empty),
}
UNFINISHED = {  # what the report reads when the campaign's own files are gone
    "store/distances/*/matrix.json": (flip, folder_of),
    "packs/few-*/manifest.json": (Path.unlink, wrong_type),
    "store/features/*-few-*/features.npy": (None, flip, folder_of),
    "store/weights/*/weights.safetensors": (None, folder_of),
}


def cases(table: Mapping[str, Sequence[Damage | None]]) -> list[object]:
    return [
        pytest.param(pattern, damage, marks=() if damage is first else pytest.mark.exhaustive)
        for pattern, (first, *others) in table.items()
        for damage in (first, *others)
        if damage
    ]


class Campaign:
    """A finished campaign, of which `runs` is a copy."""

    def __init__(self, folder: Path, finished: Path) -> None:
        self.runs, self.finished = folder / "damaged", finished
        words = [str(folder / "shapes.yaml"), f"runs={self.runs}"]
        row = ["--method", "wise_ft", "--set", "outline", "--alpha", "0.5"]
        self.campaign, self.metrics = ["campaign", *words], ["metrics", *words]
        self.export = ["export", *words, *row, "--out", str(folder / "export"), "--force"]

    def restore(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)
        shutil.copytree(self.finished, self.runs)

    def numbers(self) -> dict[str, bytes]:
        names = ("accuracy.csv", "mri.csv", "distances.csv", "comparisons.csv", "table.txt")
        return {name: (self.runs / "shapes/report" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(folder, finished_runs) -> Iterator[Campaign]:
    with pytest.MonkeyPatch.context() as patch:
        campaigns.in_this_process(patch)
        yield Campaign(folder, finished_runs)


def heal(finished: Campaign, command: Sequence[str], damaged: Path, capsys: Any) -> None:
    """Give a command, and do what its error says until there is none."""
    for _ in range(4):
        if not cli.main(command):
            return
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert damaged.name in line or damaged.parent.name in line, line
        follow(line, damaged)
        if command != finished.campaign and "rib campaign" in line:
            heal(finished, finished.campaign, damaged, capsys)
    raise AssertionError(f"a dead end: {line}")


@pytest.mark.parametrize(("pattern", "damage"), cases(DAMAGED))
def test_what_is_damaged_is_healed_or_named(finished, capsys, pattern, damage):
    finished.restore()
    before = finished.numbers()
    path, *_ = sorted(finished.runs.glob(pattern))
    damage(path)
    heal(finished, finished.campaign, path, capsys)
    assert finished.numbers() == before
    if "predictions" in pattern:
        heal(finished, finished.metrics, path, capsys)
    elif "cells" in pattern:
        heal(finished, finished.export, path, capsys)
    assert finished.numbers() == before and path.is_file()
    capsys.readouterr()
    assert cli.main(finished.campaign) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("pattern", "damage"), cases(UNFINISHED))
def test_a_campaign_that_lost_its_report_too_is_healed(finished, capsys, pattern, damage):
    finished.restore()
    before = finished.numbers()
    path, *_ = sorted(finished.runs.glob(pattern))
    damage(path)
    shutil.rmtree(finished.runs / "shapes")
    heal(finished, finished.campaign, path, capsys)
    assert finished.numbers() == before
