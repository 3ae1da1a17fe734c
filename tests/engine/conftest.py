"""The fixtures that several rooms share: the drawn benchmark, campaigns on it, and models."""

from helpers.campaigns import finished, folder
from helpers.encoded_rib import rib
from helpers.evaluations import expected, fresh, mixes, small_slices
from helpers.fork_server import forked
from helpers.grids import grid
from helpers.tiny_clip import clip_words, open_clip
from helpers.user_checkpoints import user_grid

__all__ = [
    "clip_words", "expected", "finished", "folder", "forked", "fresh", "grid", "mixes",
    "open_clip", "rib", "small_slices", "user_grid",
]  # fmt: skip
