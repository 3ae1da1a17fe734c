"""Progress bars."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm

from engine.machine import ranks


def bar(*words: Any, **options: Any) -> tqdm:
    """Returns a bar that disappears when done. Hidden by RIB_PROGRESS=off, and on ranks above 0."""
    hidden = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    return tqdm(*words, leave=False, disable=hidden, **options)
