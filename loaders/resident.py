"""A whole dataset in device memory: the default if it fits.

The protocol's pixels are constant, so a dataset of a few gigabytes is read and checked once; each
epoch then only gathers on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath

import numpy as np
import psutil
import torch
from tqdm import tqdm

from loaders.batch import Batch, on_device
from loaders.pack import Pack

_CHUNK = 256
_SHARE = 0.4  # of the free memory: model, optimizer and activations need the rest
# Control groups: the folder below their mount, files of limit and usage, key of inactive pages.
_VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("", "memory.max", "memory.current", "inactive_file")


class Resident:
    """Holds all images of a pack as uint8 on `device`.

    Raises ValueError naming the first damaged sample.
    """

    def __init__(self, pack: Pack, device: torch.device | str = "cpu") -> None:
        self.pack = pack
        self.device = torch.device(device)
        self._pixels_NHWC = torch.empty(
            (len(pack), *pack.shape, 3), dtype=torch.uint8, device=self.device
        )
        starts = range(0, len(pack), _CHUNK)
        with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
            loaded = pool.imap_unordered(self._load, starts)
            for _ in tqdm(loaded, f"load {pack.name}", len(starts), delay=2):
                pass

    def _load(self, start: int) -> None:
        index = np.arange(start, min(start + _CHUNK, len(self.pack)))
        part_NHWC = self._pixels_NHWC[start : start + len(index)]
        if self.device.type == "cpu":
            self.pack.read(index, part_NHWC.numpy())  # in place, without a copy
        else:
            part_NHWC.copy_(torch.from_numpy(self.pack.pixels(index)))

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Yields one Batch per index array (int64 [b], any order, any size, repeats allowed)."""
        for index in batches:
            rows = on_device(index, self.device)
            yield Batch(index, self.device, lambda rows=rows: self._gather(rows))

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self._pixels_NHWC.index_select(0, rows).permute(0, 3, 1, 2)


def fits(pack: Pack, device: torch.device | str = "cpu") -> bool:
    """Whether the whole pack fits into 40% of the free memory of `device`."""
    return has_room(len(pack) * pack.shape[0] * pack.shape[1] * 3, torch.device(device))


def has_room(nbytes: int, device: torch.device) -> bool:
    """Whether this many bytes fit into 40% of a device's free memory."""
    return nbytes <= _SHARE * free_memory(device)


def free_memory(device: torch.device) -> float:
    """Returns the bytes that can still be allocated, including memory that torch reserves but does
    not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(psutil.virtual_memory().available, free_in_groups())


def free_in_groups(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> float:
    """Returns the bytes that the process's control groups leave, or infinity without a limit.

    A group's limit applies to all groups below it. Cached files that were not read lately count as
    free, since the kernel reclaims them first.
    """
    free = float("inf")
    for line in _text(groups).splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, *names = _VERSION_1 if controllers else _VERSION_2
        group = PurePosixPath(path.lstrip("/"))
        # A container sees its own groups at the mount, but the path may be that of the host.
        for level in (group, *group.parents):
            free = min(free, _free_in_group(mount / top / level, *names))
    return free


def _free_in_group(folder: Path, limit: str, usage: str, cached: str) -> float:
    if not (folder / limit).is_file() or (text := _text(folder / limit)) == "max":
        return float("inf")
    statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    used = int(_text(folder / usage)) - int(statistics[cached])
    return max(0, int(text) - used)


def _text(file: Path) -> str:
    return file.read_text("utf-8").strip()
