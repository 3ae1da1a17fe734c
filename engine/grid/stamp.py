"""The stamp of a report: which plan it shows, and the hash of each of its files.

It lies beside them, in lines: the plan's name, then as `sha256sum` writes them. Older stamps have
the first line alone.
"""

from __future__ import annotations

from pathlib import Path

from engine.grid import campaign
from engine.machine.files import write_atomic
from loaders.files import file_hash

STAMP = "plan"


def write(folder: Path, plan: str) -> None:
    """Stamp all files in a report's folder as the report of the plan of this name."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / STAMP
    )
    lines = [plan, *(f"{file_hash(folder / name)}  {name}" for name in names)]
    write_atomic(folder / STAMP, "\n".join(lines).encode())


def plan_of(folder: Path) -> str | None:
    """The name of the plan that a report is of; None where no stamp can be read."""
    lines = _lines(folder)
    return lines[0] if lines else None


def is_whole(folder: Path) -> bool:
    """Whether a report's files are there as they were written; of an older one, page and table."""
    if any(not _size(folder / name) for name in (campaign.PAGE, campaign.TABLE)):
        return False
    for line in _lines(folder)[1:]:
        sha256, _, name = line.partition("  ")
        if not (folder / name).is_file() or file_hash(folder / name) != sha256:
            return False
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / STAMP).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
