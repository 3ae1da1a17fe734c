"""The drawn benchmark, and a campaign on it that is finished, for all tests of this room."""

from campaigns import finished, folder
from grids import grid

__all__ = ["finished", "folder", "grid"]
