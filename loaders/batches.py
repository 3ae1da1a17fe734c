"""Batches of a pack's images: from device memory if they fit, else read ahead from its file."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import psutil
import torch
from tqdm import tqdm

from loaders.pack import Pack

log = logging.getLogger(__name__)
TIMEOUT_S = 300
_AHEAD = 3  # batches read ahead
_CHUNK = 256
_SHARE = 0.4  # of the free memory: model, optimizer and activations need the rest
# Control groups: the folder below their mount, files of limit and usage, key of inactive pages.
_VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("", "memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class Batch:
    """b samples of a pack, given by `index` (int64 [b], their positions).

    A batch has no labels, because a pack numbers its classes independently of a model's outputs;
    use `Trained.targets`. Images are gathered on the device when `images` is first read, so work on
    cached features never touches a pixel.
    """

    index: np.ndarray
    device: torch.device
    gather: Callable[[], torch.Tensor] = field(repr=False)

    @cached_property
    def images(self) -> torch.Tensor:
        """uint8 [b, 3, H, W] on the device, in channels_last memory; not normalised."""
        return self.gather()

    @cached_property
    def rows(self) -> torch.Tensor:
        """`index` on the device: int64 [b]."""
        return on_device(self.index, self.device)

    def __len__(self) -> int:
        return len(self.index)


def on_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a small array to the device, without blocking the host for a GPU."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Resident:
    """Holds all images of a pack as uint8 on `device`; an epoch only gathers there.

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


def has_room(nbytes: int, device: torch.device) -> bool:
    """Whether this many bytes fit into 40% of a device's free memory."""
    return nbytes <= _SHARE * free_memory(device)


def free_memory(device: torch.device) -> float:
    """Returns the bytes that can still be allocated, with those that torch reserves unused."""
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


class Stream:
    """Reads a pack batch by batch; `workers` threads decode ahead of the consumer."""

    def __init__(self, pack: Pack, device: torch.device | str = "cpu", *, workers: int = 2) -> None:
        self.pack = pack
        self.device = torch.device(device)
        self.workers = workers

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Yields one Batch per index array (int64 [b], any order, any size, repeats allowed).

        Another thread consumes `batches`, a few batches ahead. Raises ValueError naming a damaged
        sample, and TimeoutError if a batch takes more than `TIMEOUT_S` seconds.
        """
        produced = self._produce(batches)
        # The pool's thread is a daemon, unlike an executor's, so a stuck read does not block exit.
        with ThreadPool(1) as pool:
            ahead: deque[Any] = deque(
                pool.apply_async(next, (produced, None)) for _ in range(_AHEAD)
            )
            try:
                while (read := ahead.popleft().get(TIMEOUT_S)) is not None:
                    ahead.append(pool.apply_async(next, (produced, None)))
                    index, images, copied = read
                    if copied is not None:
                        consumer = torch.cuda.current_stream(self.device)
                        consumer.wait_event(copied)
                        images.record_stream(consumer)
                    yield Batch(index, self.device, lambda images=images: images)
            except multiprocessing.TimeoutError:
                raise TimeoutError(
                    f"{self.pack.beton}: no batch in {TIMEOUT_S} s; is its disk reachable?"
                ) from None

    def _produce(
        self, batches: Iterable[np.ndarray]
    ) -> Generator[tuple[np.ndarray, torch.Tensor, torch.cuda.Event | None], None, None]:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            # A new thread is on GPU 0, where leaving a stream would create a context of 0.5 GB.
            torch.cuda.set_device(self.device)
        copies = torch.cuda.Stream(self.device) if on_gpu else None
        with ThreadPool(self.workers) as pool:
            for index in batches:
                assert (index >= 0).all(), index  # NumPy would index from the end
                host_NHWC = torch.empty(
                    (len(index), *self.pack.shape, 3), dtype=torch.uint8, pin_memory=on_gpu
                )
                out = host_NHWC.numpy()
                parts = np.array_split(index, self.workers), np.array_split(out, self.workers)
                pool.starmap(self.pack.read, zip(*parts, strict=True))
                with torch.cuda.stream(copies):
                    images = host_NHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                    copied = torch.cuda.Event() if on_gpu else None
                    if copied is not None:
                        copied.record(copies)
                yield index, images, copied


Source = Resident | Stream


def open_source(
    pack: Pack,
    device: torch.device | str = "cpu",
    mode: Literal["auto", "resident", "stream"] = "auto",
    *,
    workers: int = 2,
) -> Source:
    """Returns the pack on `device`: resident if it fits or `mode` says so, otherwise streamed."""
    nbytes = len(pack) * pack.shape[0] * pack.shape[1] * 3
    fits = mode == "auto" and has_room(nbytes, torch.device(device))
    resident = fits or mode == "resident"
    log.info("%s: %s on %s", pack.name, "resident" if resident else "streamed", device)
    if resident:
        return Resident(pack, device)
    return Stream(pack, device, workers=workers)
