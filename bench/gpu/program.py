"""What the programs of the stages share: their options, and how a number is shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of `python -m bench.gpu.NAME`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.gpu.{name}", description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    return parser


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
