"""No dead end: whatever of a finished campaign is deleted or damaged, the next command heals it.

Either it ends with the numbers of before, or with a line that names the file and a remedy; the
remedy is done, and then it ends with those numbers. Here is a case of each kind of file;
`make faults` makes random ones.
"""

import json
import shutil
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns.plan import TABLE
from helpers import campaigns
from helpers.damage import flip
from helpers.endings import heal

pytestmark = pytest.mark.slow


def folder_of(path: Path) -> None:
    shutil.rmtree(path.parent)


def swap(path: Path) -> None:
    """Two evaluations of the record change places: the checksum of every prediction still fits."""
    values = json.loads(path.read_text(encoding="utf-8"))
    a, b = [row for row in values["evaluations"] if row["downstream"] == "few"][:2]
    a["path"], b["path"] = b["path"], a["path"]
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


DAMAGED = {
    "store/predictions/fine_tune-outline-on-few-*/part-00000.parquet": flip,
    "store/cells/fine_tune-outline-*/weights.safetensors": flip,
    "store/cells/fine_tune-outline-*/done.json": Path.unlink,
    "store/cells/wise_ft-outline-*/cell.json": folder_of,
    "shapes/plans/*/evaluations.json": swap,
    "shapes/report/accuracy.csv": flip,
}
UNFINISHED = {  # what the report reads when the campaign's own files are gone
    "store/distances/*/matrix.json": flip,
    "packs/few-*/manifest.json": Path.unlink,
}


@pytest.fixture
def commands(folder, finished, tmp_path, monkeypatch) -> dict[str, list[str]]:
    """Commands on a copy of a finished campaign, by name."""
    campaigns.in_this_process(monkeypatch)
    words = [str(folder / "shapes.yaml"), f"runs={shutil.copytree(finished, tmp_path / 'runs')}"]
    row = ["--method", "wise_ft", "--downstream", "outline", "--alpha", "0.5"]
    export = ["export", *words, *row, "--out", str(tmp_path / "export")]
    return {"campaign": ["campaign", *words], "report": ["report", *words], "export": export}


@pytest.mark.parametrize("pattern", [*DAMAGED, *UNFINISHED])
def test_what_is_damaged_is_healed_or_named(commands, tmp_path, capsys, pattern):
    report = tmp_path / "runs" / "shapes" / "report"

    def give(name: str) -> str:
        ended, lines = cli.main(commands[name]), capsys.readouterr().err.strip().splitlines()
        return "\n".join(line for line in lines if ended and not line.startswith("note: "))

    def numbers() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [*report.glob("*.csv"), report / TABLE]}

    before = numbers()
    path, *_ = sorted((tmp_path / "runs").glob(pattern))
    (DAMAGED | UNFINISHED)[pattern](path)
    if pattern in UNFINISHED:
        shutil.rmtree(report.parent)
    heal(give, "campaign", path)
    assert numbers() == before
    if "predictions" in pattern:
        heal(give, "report", path)
    elif "cells" in pattern:
        heal(give, "export", path)
    assert numbers() == before and path.is_file()
    capsys.readouterr()
    assert cli.main(commands["campaign"]) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
