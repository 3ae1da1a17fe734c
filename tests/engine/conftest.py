"""The drawn benchmark, and what is made of it once, for all tests of the engine."""

from campaigns import finished, folder
from encoded_rib import rib
from grids import grid
from user_checkpoints import user_grid

__all__ = ["finished", "folder", "grid", "rib", "user_grid"]
