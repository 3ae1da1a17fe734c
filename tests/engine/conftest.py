"""The fixtures that several rooms share: the drawn benchmark, campaigns on it, and models."""

from campaigns import finished, folder
from encoded_rib import rib
from evaluations import expected, fresh, mixes, small_slices
from grids import grid
from tiny_clip import open_clip
from user_checkpoints import user_grid

__all__ = [
    "expected", "finished", "folder", "fresh", "grid", "mixes", "open_clip", "rib", "small_slices",
    "user_grid",
]  # fmt: skip
