"""No dead end: whatever of a finished campaign is deleted or damaged, the next command heals it.

Either it ends with the numbers of before, or with a line that names the file and a remedy; the
remedy is done, and then it ends with those numbers. Here is a case of each kind of file;
`make faults` makes random ones.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import campaigns
import pytest
from damage import cut, empty, flip
from endings import follow

from engine import cli

pytestmark = pytest.mark.slow


def folder_of(path: Path) -> None:
    shutil.rmtree(path.parent)


def swap(path: Path) -> None:
    """Two evaluations of the record change places: the checksum of every prediction still fits."""
    values = json.loads(path.read_text())
    a, b = [row for row in values["evaluations"] if row["downstream"] == "few"][:2]
    a["path"], b["path"] = b["path"], a["path"]
    path.write_text(json.dumps(values, indent=1))


DAMAGED = {
    "store/predictions/fine_tune-outline-on-few-*/part-00000.parquet": flip,
    "store/predictions/fine_tune-outline-on-few-*/done.json": cut,
    "store/cells/fine_tune-outline-*/weights.safetensors": flip,
    "store/cells/fine_tune-outline-*/done.json": Path.unlink,
    "store/cells/wise_ft-outline-*/cell.json": folder_of,
    "shapes/plans/*/evaluations.json": swap,
    "shapes/plans/*/plan.json": empty,
    "shapes/report/accuracy.csv": flip,
}
UNFINISHED = {  # what the report reads when the campaign's own files are gone
    "store/distances/*/matrix.json": flip,
    "packs/few-*/manifest.json": Path.unlink,
}


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
def healthy(folder, finished) -> Iterator[Campaign]:
    with pytest.MonkeyPatch.context() as patch:
        campaigns.in_this_process(patch)
        yield Campaign(folder, finished)


def heal(healthy: Campaign, command: Sequence[str], damaged: Path, capsys: Any) -> None:
    """Give a command, and do what its error says until there is none."""
    for _ in range(4):
        if not cli.main(command):
            return
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert damaged.name in line or damaged.parent.name in line, line
        follow(line, damaged)
        if command != healthy.campaign and "rib campaign" in line:
            heal(healthy, healthy.campaign, damaged, capsys)
    raise AssertionError(f"a dead end: {line}")


@pytest.mark.parametrize("pattern", [*DAMAGED, *UNFINISHED])
def test_what_is_damaged_is_healed_or_named(healthy, capsys, pattern):
    healthy.restore()
    before = healthy.numbers()
    path, *_ = sorted(healthy.runs.glob(pattern))
    (DAMAGED | UNFINISHED)[pattern](path)
    if pattern in UNFINISHED:
        shutil.rmtree(healthy.runs / "shapes")
    heal(healthy, healthy.campaign, path, capsys)
    assert healthy.numbers() == before
    if "predictions" in pattern:
        heal(healthy, healthy.metrics, path, capsys)
    elif "cells" in pattern:
        heal(healthy, healthy.export, path, capsys)
    assert healthy.numbers() == before and path.is_file()
    capsys.readouterr()
    assert cli.main(healthy.campaign) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
