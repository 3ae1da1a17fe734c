"""What a tracker is given. The module NAME of this package defines the `Tracker` NAME.

A tracker is made with a `Subject`. It has `log(values, step)` (values by name; the optimizer step,
or None after training) and `close()`, and may have `fail()`, called in place of `close` after an
error. It imports what it logs to when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Subject:
    """A run, as described to a tracker.

    group: the campaign. name: readable, and unique in the group. id: determined by the cell's
    recipe and the runs folder. config: the resolved recipe, by dotted key. folder: the runs folder.
    """

    group: str
    name: str
    id: str
    config: Mapping[str, Any]
    folder: Path
