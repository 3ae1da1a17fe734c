"""No dead end: whatever of a finished campaign is deleted or damaged, the next command heals it.

Either it ends with the numbers of before, or with a line that names the file and a remedy; the
remedy is done, and then it ends with those numbers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import campaigns
import grids
import pytest

from engine import cli
from engine.grid.build import Builder

folder, grid = campaigns.folder, grids.grid
pytestmark = pytest.mark.slow


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def wrong_type(path: Path) -> None:
    path.write_text("[]")


def folder_of(path: Path) -> None:
    shutil.rmtree(path.parent)


def swap(path: Path) -> None:
    """Two predictions of the record change places: all checksums of files still fit."""
    text = path.read_text()
    rows = json.loads(text)["evaluations"]
    a, b = (row["path"] for row in rows if row["method"] == "fine_tune")
    text = text.replace(a, "@").replace(b, a).replace("@", b)
    path.write_text(text)


def more(path: Path) -> None:
    path.write_text(json.dumps({"more": 1, **json.loads(path.read_text())}))


FILE = (Path.unlink, cut, flip, empty)
JSON = (*FILE, wrong_type, more)
STORE = "store"
DAMAGED = {
    f"{STORE}/predictions/tiny-on-few-*/part-00000.parquet": (*FILE, folder_of),
    f"{STORE}/predictions/fine_tune-outline-on-few-*/part-00000.parquet": (*FILE, folder_of),
    f"{STORE}/predictions/fine_tune-outline-on-few-*/done.json": JSON,
    f"{STORE}/cells/fine_tune-outline-*/weights.safetensors": (*FILE, folder_of),
    f"{STORE}/cells/fine_tune-outline-*/cell.json": JSON,
    f"{STORE}/cells/fine_tune-outline-*/done.json": JSON,
    f"{STORE}/cells/wise_ft-outline-*/cell.json": (*JSON, folder_of),
    f"{STORE}/features/*-few-*/features.npy": (*FILE, folder_of),
    f"{STORE}/distances/*/matrix.json": (*JSON, folder_of),
    f"{STORE}/weights/*/weights.safetensors": (*FILE, folder_of),
    "packs/few-*/manifest.json": (*FILE, wrong_type),
    "shapes/plans/*/evaluations.json": JSON,
    "shapes/plans/*/plan.json": JSON,
    "shapes/plans/*/progress/report.json": JSON,
    "shapes/plans/*/done/column-few": FILE,
    "shapes/report/plan": FILE,
    "shapes/report/table.txt": FILE,
    "shapes/report/accuracy.csv": FILE,
    "shapes/report/index.html": FILE,
}
CASES = [(pattern, damage) for pattern, kinds in DAMAGED.items() for damage in kinds]
