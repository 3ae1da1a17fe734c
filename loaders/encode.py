"""Encodes images of any kind as a pack, in parallel and all or nothing.

A pack is written to a temporary folder next to its destination, checked, fsynced and renamed, so
after any interruption there is either the whole pack or none. Encoders of the same pack wait for
each other, and the second opens the first one's pack. An interrupted encoder leaves its folder, and
the next one resumes there.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from loaders import decoding
from loaders.files import locks
from loaders.files.durable import canonical, digest, file_hash
from loaders.files.root import Root
from loaders.pack import COLUMNS, FORMAT_VERSION, IMAGES, MANIFEST, MODES, SAMPLES, Item, Pack
from loaders.trees import left_out
from loaders.writer import JOURNAL, PackWriter, Stored

log = logging.getLogger(__name__)
_AHEAD = 8  # items per worker process
_QUALITY = 90  # of JPEGs
# Manifest keys that determine a pack's pixels, labels, classes and transform.
_FINGERPRINT = ("format_version", "classes", "transform", "height", "width", "format", "sha256")


class Encoder(Protocol):
    """Maps an item to the bytes to store, or to the reason why it has none."""

    @property
    def format(self) -> str: ...

    def __call__(self, item: Item) -> Stored | str: ...


@dataclass(frozen=True)
class Images:
    """Encodes image files: opens them, converts them to RGB and transforms them.

    `open_image(payload)` returns a PIL image. `decoding.to_rgb` converts it, with transparent
    pixels composited on `background`. `transform(image)` returns uint8 [H, W, 3], the same shape
    for each image. `format`: raw pixels, or JPEG of quality 90. Raises OSError naming an image that
    the disk or the network failed to deliver.
    """

    open_image: Callable[[Any], Image.Image]
    transform: Callable[[Image.Image], np.ndarray]
    format: Literal["raw", "jpeg"] = "raw"
    background: str = decoding.WHITE

    def __call__(self, item: Item) -> Stored | str:
        try:
            image, remark = decoding.to_rgb(self.open_image(item.payload), self.background)
            pixels = self.transform(image)
        except (MemoryError, ImportError):  # faults of the machine, not of the image
            raise
        except UnidentifiedImageError:  # Pillow's message is only a memory address
            return f"not an image{getattr(item.payload, 'where', '')}"
        except Exception as error:  # decoders raise anything for a damaged image
            if isinstance(error, OSError) and error.errno is not None:  # a disk error
                raise OSError(error.errno, f"{item.key}: {error.strerror}") from error
            return f"{type(error).__name__}: {error}{getattr(item.payload, 'where', '')}"
        is_rgb = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert is_rgb, (item.key, pixels.dtype, pixels.shape)
        blob = pixels.tobytes()
        if self.format == "jpeg":
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
            blob = buffer.getvalue()
        return Stored(blob, zlib.crc32(blob), pixels.shape[:2], remark)


def encode(
    out: Path,
    *,
    name: str,
    items: Sequence[Item],
    encoder: Encoder,
    transform_spec: Mapping[str, Any],
    classes: Sequence[str],
    source_fingerprint: str,
    columns: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    workers: int = 1,
    on_error: Literal["refuse", "skip"] = "refuse",
    progress: bool = True,
) -> Pack:
    """Encodes `items`, in order, as the pack `out`, and opens it.

    With `workers` > 1 the encoder runs in spawned processes and must be picklable. `transform_spec`
    (JSON-able) identifies the transform that made the pixels, and `source_fingerprint` the files
    behind the payloads. `columns` names the items' further values. `extra` is stored in the
    manifest.

    on_error: "refuse" raises ValueError if images cannot be opened, naming the first few; "skip"
    lists them in the manifest. Returns an existing pack of the same request unchanged; anything
    else at `out` raises FileExistsError. After an error or an interruption, the next call with the
    same images resumes. Raises OSError naming the disk if it is full.
    """
    out = Path(out).absolute()
    assert items and all(0 <= item.label < len(classes) for item in items), name
    assert len({item.key for item in items}) == len(items), f"{name}: keys must be unique"
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "classes": list(classes),
        "transform": dict(transform_spec),
        "format": encoder.format,
        "quality": _QUALITY if encoder.format == "jpeg" else None,
        "source_fingerprint": source_fingerprint,
        "extra": dict(extra or {}),
    }
    if columns:
        manifest["columns"] = list(columns)
    images, manifest["request"] = request_digests(manifest, items, on_error)
    root = Root(out.parents[1])  # raises an error if `packs` or a folder in it is a link
    root.make(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    waiting = "%s: waiting for another process that encodes this pack"
    with locks.held(lock, lambda: log.info(waiting, lock), root):
        if root.at(out).exists():
            return _finished(out, manifest["request"])
        temporary = out.with_name(f".{out.name}.tmp")
        try:
            with closing(PackWriter(temporary, items, MODES[encoder.format], images)) as writer:
                options = {"initial": writer.done, "unit": "image", "disable": not progress}
                with (
                    closing(ordered_map(encoder, items[writer.done :], workers)) as results,
                    tqdm(results, name, len(items), **options) as bar,
                ):
                    writer.write(bar)
                if writer.skipped and (on_error == "refuse" or not writer.written):
                    raise ValueError(
                        f"{name} lacks {left_out(writer.skipped, len(items))}. "
                        "Repair them, fetch them again, or skip them: dataset.undecodable=skip, or "
                        "--partial for rib encode"
                    )
                if values_of := writer.finish(columns):
                    manifest["columns"] = values_of
            _write_manifest(temporary, manifest | writer.counts(len(classes)))
            Pack.open(temporary)
            root.remove(temporary / JOURNAL)
            root.rename(temporary, out)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    f"{out.parent}: the disk is full, so {name} is not encoded; make room and run "
                    f"the same command again, which resumes from {temporary}"
                ) from error
            raise
    return Pack.open(out)


def request_digests(
    manifest: Mapping[str, Any], items: Sequence[Item], on_error: str
) -> tuple[str, str]:
    """Returns the `digest` of the manifest with each item's label, source and key, without and with
    `on_error`.

    The values of further columns count too. Items are hashed one by one, since the text of millions
    of items would take gigabytes.
    """
    hashed = hashlib.sha256(f"[{canonical(manifest)},[".encode())
    for number, item in enumerate(items):
        text = canonical([item.label, item.source, item.key, *item.values])
        hashed.update(f"{',' if number else ''}{text}".encode())
    images = hashed.copy()
    images.update(b"]]")
    hashed.update(f"],{canonical(on_error)}]".encode())
    return images.hexdigest(), hashed.hexdigest()


def _finished(out: Path, request: str) -> Pack:
    if not (out / MANIFEST).exists():
        raise FileExistsError(
            f"{out} exists and is not a pack; move it away or choose another folder"
        )
    pack = Pack.open(out)
    if pack.manifest["request"] != request:
        raise FileExistsError(
            f"{out} has another pack (different images, classes, transform or options); "
            "move it away or choose another folder"
        )
    return pack


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    sha256 = {name: file_hash(folder / name) for name in (IMAGES, SAMPLES)}
    whole = {**manifest, "sha256": sha256}
    whole["fingerprint"] = digest({key: whole[key] for key in _FINGERPRINT})
    if "columns" in manifest:
        sha256[COLUMNS] = file_hash(folder / COLUMNS)
    whole["digest"] = digest(whole)
    Root(folder.parents[1]).write(folder / MANIFEST, json.dumps(whole, indent=1).encode())


def ordered_map(
    function: Callable[[Item], Stored | str], items: Iterable[Item], workers: int
) -> Generator[Stored | str, None, None]:
    """Yields `map(function, items)`, computed by `workers` processes (by this process if 1).

    The processes are spawned, so `function`, items and results must be picklable. They stay a
    little ahead of the consumer: `ProcessPoolExecutor.map` would submit millions of items at once,
    and its workers hang if the parent is killed. Exceptions of `function` are raised here. Raises
    RuntimeError if a worker process dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_follow_parent) as pool:
        pending: deque[Future[Stored | str]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {workers} worker processes died: too little memory (use fewer workers), "
                'or the script that starts them lacks `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """In a spawned process: ignores Ctrl-C, which the parent handles, and exits with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
