"""Some images of a split, named: what is evaluated where not all images are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Places in the pack (int64, ascending) of some images of `split`; `name` determines them."""

    split: str
    places: np.ndarray
    name: str
