"""Results of a program: a line on the screen and a row of a JSON file, as soon as it is known."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from engine.machine.devices import device_name
from engine.machine.files import write_atomic

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
_PACKAGES = ("triton", "timm", "numpy", "numba", "deepspeed", "torchvision", "POT")


class Results:
    """Rows of one program on one machine, kept in FOLDER/NAME-DEVICE.json."""

    def __init__(self, folder: Path | None, name: str, device: torch.device) -> None:
        machine = about(device)
        kind = machine["device"] if device.type == "cuda" else "cpu"
        file = f"{name}-{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"
        self._path = folder and folder / file
        self.content: dict[str, Any] = {"name": name, "machine": machine, "rows": []}

    def add(self, row: Mapping[str, Any], key: Sequence[str] = ()) -> None:
        """key: columns of which some name the row, and it replaces the row of the same name."""
        name = {column: row[column] for column in key if column in row}.items()
        rows = self.content["rows"]
        self.content["rows"] = [each for each in rows if not name or not name <= each.items()]
        self.content["rows"].append(dict(row))
        self.write()
        print(", ".join(f"{key} {short(value)}" for key, value in row.items()), flush=True)

    def write(self, **more: Any) -> None:
        """The file, with more than rows in it, whole or not at all."""
        self.content |= more
        if self._path is not None:
            text = json.dumps(self.content)
            rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"))
            write_atomic(self._path, json.dumps(rounded, indent=1).encode() + b"\n")


def about(device: torch.device) -> dict[str, Any]:
    """Device, cores, threads and load of this machine, and the versions that matter."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "device": device_name(device),
        "kind": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a column for each key of any row."""
    rows = list(rows)
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [heads, ["---"] * len(heads)]
    lines += [[short(row.get(head, "-")) for head in heads] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """The short hash, with a + where files differ from it; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        process = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        return "unknown"
    return process.stdout.strip() or "unknown"
