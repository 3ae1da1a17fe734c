"""Packs that do not fit in memory, read ahead batch by batch."""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import numpy as np
import torch

from loaders.batch import Batch
from loaders.pack import Pack
from loaders.resident import Resident, fits

log = logging.getLogger(__name__)
TIMEOUT_S = 300
_AHEAD = 3  # batches read ahead


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
    resident = fits(pack, device) if mode == "auto" else mode == "resident"
    log.info("%s: %s on %s", pack.name, "resident" if resident else "streamed", device)
    if resident:
        return Resident(pack, device)
    return Stream(pack, device, workers=workers)
