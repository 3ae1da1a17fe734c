"""Reuses freed memory for the next batch, on a CPU; and whether the kernel ran out of memory.

glibc returns the large blocks of a freed tensor to the kernel and requests new ones a moment later;
zeroing their pages took more than half of an evaluation's time (docs/design.md).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# mallopt's parameters (malloc.h): trim threshold, top pad, most mmapped blocks, most arenas.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


def keep_pages() -> None:
    """Tell glibc's malloc to hold on to freed pages; does nothing with another C library."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)  # further arenas would return pages despite the lines below
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, 2**26)


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed since its start because memory ran out.

    Those of control groups, as of containers and Slurm's jobs, count as well.
    """
    lines = vmstat.read_text().splitlines() if vmstat.is_file() else []
    counts = dict(line.split() for line in lines)
    return int(counts.get("oom_kill", 0))
