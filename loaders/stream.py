"""Packs that do not fit in memory, read batch by batch ahead of their use.

The NumPy reader of `loaders.pack` is the default. On raw packs it took 28 to 40 CPU-milliseconds
for 600 images of 224 px where FFCV took 40 to 43 (two threads, a busy machine, by turns). It needs
no seconds of compilation for each set, and a damaged file cannot abort the process. JPEG packs are
decoded by Pillow: FFCV uses libjpeg's fast DCT, which is off by 1 to 2 grey levels of 255 on
average (16 at most were seen), so pixels would depend on how a set is read.

`ffcv` reads through the pipeline that FFCV's Loader compiles, each sample checked before. Its
iterator is not used: an error in its thread hangs the consumer for ever, its batches are views of
five recycled buffers, and it sets torch's threads.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Literal

import numpy as np
import torch

from loaders.batch import Batch, ReadPixels, Source, checked_index
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

    reader: `ffcv` raises RuntimeError where FFCV is not installed or does not work.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device | str = "cpu",
        *,
        workers: int = 2,
        reader: Literal["numpy", "ffcv"] = "numpy",
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
            yield Batch(index, self.device, lambda images=images: images)

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
    mode: Literal["auto", "resident", "stream", "ffcv"] = "auto",
    *,
    workers: int = 2,
) -> Source:
    """The pack on `device`: resident where it fits or `mode` says so, else streamed.

    mode: `ffcv` streams through FFCV.
    """
    if mode not in ("auto", "resident", "stream", "ffcv"):
        raise ValueError(f"mode={mode!r}: auto | resident | stream | ffcv")
    resident = fits(pack, device) if mode == "auto" else mode == "resident"
    log.info("%s: %s on %s", pack.name, "resident" if resident else "streamed", device)
    if resident:
        return Resident(pack, device)
    return Stream(pack, device, workers=workers, reader="ffcv" if mode == "ffcv" else "numpy")


def _reader(pack: Pack, reader: str) -> ReadPixels:
    if reader not in ("numpy", "ffcv"):
        raise ValueError(f"reader={reader!r}: numpy | ffcv")
    if reader == "numpy":
        return pack.read
    pack.shard.require_unchanged()
    pack.verify(_ends(pack))  # a damaged file is no failure of FFCV
    try:
        return FfcvPixels(pack)
    except Exception as error:  # FFCV, numba and two native libraries: anything may be raised
        raise RuntimeError(
            f"FFCV cannot read {pack.beton} ({type(error).__name__}: {error}); source=stream reads "
            "it without FFCV"
        ) from error


@contextmanager
def _torch_threads_unchanged() -> Iterator[None]:
    """Importing FFCV and building a Loader both call torch.set_num_threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
