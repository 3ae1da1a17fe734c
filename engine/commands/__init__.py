"""The commands of `rib`: `arguments` declares them, and the other modules run them.

What imports torch or pandas is imported when a command runs, so `rib --help` is fast.
"""

from __future__ import annotations

from pathlib import Path


def refuse_overwriting(place: Path, force: bool, *, is_folder: bool) -> None:
    """Raise ValueError if a file or non-empty folder exists at the place of an output.

    With `force`, raise only if it is a file in place of a folder, or a folder in place of a file.
    """
    if not place.exists():
        return
    if place.is_dir() != is_folder:
        kinds = "a file, not a folder" if is_folder else "a folder, not a file"
        raise ValueError(f"{place} is {kinds}: choose another place with --out")
    is_empty = is_folder and not any(place.iterdir())
    if not (is_empty or force):
        raise ValueError(
            f"{place} exists already: replace it with --force, or choose another place with --out"
        )
