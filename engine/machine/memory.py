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


def out_of_memory_kills(
    groups: Path = Path("/proc/self/cgroup"),
    mount: Path = Path("/sys/fs/cgroup"),
    vmstat: Path = Path("/proc/vmstat"),
) -> int:
    """How many processes the kernel has killed because memory ran out.

    Those of this process's control group, which its children share, or of the whole machine where
    the group has no such count.
    """
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = mount, "memory.events"
        elif "memory" in controllers.split(","):
            top, name = mount / "memory", "memory.oom_control"
        else:
            continue
        # A container sees its group at the mount, but may be told its path outside of it.
        for file in (top / path.lstrip("/") / name, top / name):
            if (count := _count(file, "oom_kill")) is not None:
                return count
    return _count(vmstat, "oom_kill") or 0


def _count(file: Path, key: str) -> int | None:
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [key]), None)
