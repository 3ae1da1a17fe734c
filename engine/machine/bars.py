"""Progress bars."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm

from engine.machine import ranks


def bar(*words: Any, **options: Any) -> tqdm:
    """A bar that leaves nothing behind. RIB_PROGRESS=off hides it, and all ranks but the first."""
    hidden = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    return tqdm(*words, leave=False, disable=hidden, **options)
