"""Keeps freed memory for reuse, on a CPU.

glibc returns the large blocks of a freed tensor to the kernel and requests new ones a moment later.
Zeroing their pages took more than half of an evaluation's time (docs/design.md).
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt (malloc.h).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


def keep_pages() -> None:
    """Makes glibc's malloc keep freed pages; does nothing with another C library."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)  # other arenas return pages despite the settings below
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, 2**26)
