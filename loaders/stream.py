"""Packs that do not fit in memory, read batch by batch ahead of their use.

Raw packs go through the pipeline that FFCV's Loader compiles. FFCV's iterator is not used: an error
in its thread hangs the consumer for ever, its batches are views of five recycled buffers and it
sets torch's threads. `Stream` gives batches of any order and size in fresh memory, raises errors in
the consumer, and checks every sample before FFCV reads it.

JPEG packs are decoded by Pillow: FFCV decodes with libjpeg's fast DCT, which is off by 1 to 2 grey
levels of 255 on average (16 at most were seen), so pixels would depend on how a set is read.

Where FFCV cannot be used, the NumPy reader of `loaders.pack` reads the same packs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Literal

import numpy as np
import torch

from loaders.batch import Batch, ReadPixels, Source, checked_index, on_device
from loaders.pack import Pack
from loaders.resident import Resident, fits
from loaders.workers import read_ahead

log = logging.getLogger(__name__)
FFCV_JPEG_TOLERANCE = 4.0  # mean absolute difference to Pillow, in grey levels of 255


class FfcvPixels:
    """Reads the pixels of a pack through the compiled pipeline of FFCV's Loader.

    Raises whatever FFCV raises, and RuntimeError where its pixels are wrong.
    """

    def __init__(self, pack: Pack) -> None:
        with _torch_threads_unchanged():
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption

            image, label = pack.shard.fields
            loader = Loader(
                str(pack.beton),
                batch_size=1,
                num_workers=1,  # `Stream` has threads; this pipeline releases the GIL
                order=OrderOption.SEQUENTIAL,
                seed=0,
                drop_last=False,
                pipelines={image: [SimpleRGBImageDecoder()], label: None},  # pyright: ignore
            )
        assert loader.code is not None
        ((self._decode, (node,)),) = loader.code[0]
        self._memory, self._shared = f"memory_{node}", f"shared_memory_{node}"
        self._rows = loader.reader.metadata
        self._state = loader.memory_manager.schedule_epoch([]).__enter__().state
        self._pack = pack
        self._require_decodes(_ends(pack))

    def __call__(self, index: np.ndarray, out: np.ndarray) -> None:
        self._pack.verify(index)
        self._pack.shard.require_unchanged()
        self._decode(
            batch_indices=index.astype(np.uint64),
            metadata=self._rows,
            storage_state=self._state,
            **{self._memory: out, self._shared: None},
        )

    def _require_decodes(self, index: np.ndarray) -> None:
        """FFCV ignores the errors of its native library: compare two images once."""
        expected = self._pack.pixels(index)
        out = np.zeros_like(expected)
        self(index, out)
        difference = np.abs(out.astype(np.int16) - expected).mean()
        if difference > (0 if self._pack.format == "raw" else FFCV_JPEG_TOLERANCE):
            raise RuntimeError(f"FFCV decodes {self._pack.beton} wrongly (off by {difference:.1f})")


def _ends(pack: Pack) -> np.ndarray:
    return np.unique([0, len(pack) - 1])


class Stream:
    """Reads a pack batch by batch, `workers` threads decoding ahead of the consumer.

    `reader`: "ffcv" or "numpy", or "auto": FFCV for raw packs where it works, else NumPy. Raises
    RuntimeError where "ffcv" is asked for and does not work.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device | str = "cpu",
        *,
        workers: int = 2,
        reader: Literal["auto", "ffcv", "numpy"] = "auto",
        timeout_s: float = 300.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: a stream needs at least one")
        self.pack = pack
        self.device = torch.device(device)
        self.workers = workers
        self.timeout_s = timeout_s
        self._read = _reader(pack, reader)

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        """One Batch for each index array (int [b], any order, any size, repeats allowed).

        `batches` is consumed by another thread, a few batches ahead. Raises IndexError for an index
        outside the pack, ValueError naming a damaged sample, TimeoutError where no batch comes.
        """
        silence = f"{self.pack.beton}: no batch in {self.timeout_s:g} s; is its disk reachable?"
        for index, images, copied in read_ahead(self._produce(batches), self.timeout_s, silence):
            if copied is not None:
                consumer = torch.cuda.current_stream(self.device)
                consumer.wait_event(copied)
                images.record_stream(consumer)
            labels = on_device(self.pack.labels[index], self.device)
            yield Batch(index, labels, lambda images=images: images)

    def _produce(
        self, batches: Iterable[np.ndarray]
    ) -> Generator[tuple[np.ndarray, torch.Tensor, torch.cuda.Event | None], None, None]:
        on_gpu = self.device.type == "cuda"
        copies = torch.cuda.Stream(self.device) if on_gpu else None
        # Its threads are daemons, unlike an executor's: a stuck read does not hold up the exit.
        with ThreadPool(self.workers) as pool:
            for batch in batches:
                index = checked_index(batch, self.pack)
                host_NHWC = torch.empty(
                    (len(index), *self.pack.shape, 3), dtype=torch.uint8, pin_memory=on_gpu
                )
                out = host_NHWC.numpy()
                parts = np.array_split(index, self.workers), np.array_split(out, self.workers)
                pool.starmap(self._read, zip(*parts, strict=True))
                with torch.cuda.stream(copies):
                    images = host_NHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                    copied = torch.cuda.Event() if on_gpu else None
                    if copied is not None:
                        copied.record(copies)
                yield index, images, copied


def open_source(
    pack: Pack,
    device: torch.device | str = "cpu",
    mode: Literal["auto", "resident", "stream"] = "auto",
    *,
    workers: int = 2,
) -> Source:
    """The pack on `device`: resident where it fits or `mode` says so, else streamed."""
    if mode not in ("auto", "resident", "stream"):
        raise ValueError(f"mode={mode!r}: auto | resident | stream")
    resident = fits(pack, device) if mode == "auto" else mode == "resident"
    log.info("%s: %s on %s", pack.name, "resident" if resident else "streamed", device)
    return Resident(pack, device) if resident else Stream(pack, device, workers=workers)


def _reader(pack: Pack, reader: str) -> ReadPixels:
    if reader not in ("auto", "ffcv", "numpy"):
        raise ValueError(f"reader={reader!r}: auto | ffcv | numpy")
    if reader == "numpy" or (reader == "auto" and pack.format == "jpeg"):
        return pack.read
    pack.shard.require_unchanged()
    pack.verify(_ends(pack))  # a damaged file is no failure of FFCV
    try:
        return FfcvPixels(pack)
    except Exception as error:  # FFCV, numba and two native libraries: anything may be raised
        reason = f"{type(error).__name__}: {error}"
        if reader == "ffcv":
            raise RuntimeError(f"FFCV cannot read {pack.beton} ({reason})") from error
        _log_fallback(reason)
        return pack.read


@functools.cache
def _log_fallback(reason: str) -> None:
    log.warning("ffcv is not available (%s); packs are read by the NumPy reader", reason)


@contextmanager
def _torch_threads_unchanged() -> Iterator[None]:
    """Importing FFCV and building a Loader both call torch.set_num_threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
