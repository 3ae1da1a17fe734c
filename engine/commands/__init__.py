"""The words after `rib`, a module each: `add` declares the command, `run` does it.

Modules import torch, and whatever imports it, only when their command runs: `rib --help` is quick.
"""

from __future__ import annotations

from pathlib import Path


def refuse_overwriting(place: Path, force: bool) -> None:
    """Raise ValueError where there is a file, or a folder that holds something, of this name."""
    is_empty = place.is_dir() and not any(place.iterdir())
    if place.exists() and not is_empty and not force:
        raise ValueError(f"{place} is there already: --force replaces it, --out writes elsewhere")
