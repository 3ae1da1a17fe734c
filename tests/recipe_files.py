"""Recipe files that tests write."""

from __future__ import annotations

from pathlib import Path


def write(path: Path, text: str) -> str:
    """Write a file, and give its path as users type it."""
    path.write_text(text)
    return str(path)
