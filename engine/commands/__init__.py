"""The words after `rib`, a module each: `add` declares the command, `run` does it.

Modules import torch, and whatever imports it, only when their command runs: `rib --help` is quick.
"""

from __future__ import annotations

from pathlib import Path


def refuse_overwriting(place: Path, force: bool, *, is_folder: bool) -> None:
    """Raise ValueError where a folder, or a file, is to be written and something is there already.

    An empty folder is nothing. With `force` only what is of the other kind is refused.
    """
    if not place.exists():
        return
    if place.is_dir() != is_folder:
        kinds = "a file, not a folder" if is_folder else "a folder, not a file"
        raise ValueError(f"{place} is {kinds}: --out writes elsewhere")
    is_empty = is_folder and not any(place.iterdir())
    if not (is_empty or force):
        raise ValueError(f"{place} is there already: --force replaces it, --out writes elsewhere")
