"""The device of a process, its name, and a CPU's threads and memory."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.machine import precision

CPUS = Path("/proc/cpuinfo")
# Parameters of mallopt (malloc.h).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


def pick_device(device: str) -> torch.device:
    """Returns the device of a single process, with TF32 disabled; `auto` prefers a GPU.

    Raises ValueError for `cuda` if torch sees no GPU.
    """
    precision.no_tf32()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or device=auto")
    use_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    return torch.device("cuda" if use_gpu else "cpu")


def device_name(device: torch.device) -> str:
    """Returns the vendor's name of the GPU or CPU, or else the machine's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = CPUS.read_text("utf-8") if CPUS.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.machine()


def keep_pages() -> None:
    """Makes glibc's malloc keep freed pages; does nothing with another C library.

    glibc returns the large blocks of a freed tensor to the kernel and requests new ones a moment
    later. Zeroing their pages took almost half of an evaluation's time: 807 images of
    EfficientNet-Lite0 at 64 px per CPU-second instead of 1,508.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)  # other arenas return pages despite the settings below
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, 2**26)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Makes torch use `count` CPU threads; Python threads started meanwhile inherit the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
