"""Images of any kind -> a pack, in parallel and all or nothing.

A pack is written to a temporary folder beside its place, checked, fsynced and renamed: whatever
stops an encoder, there is either the whole pack or none. Encoders of the same pack take turns, and
the second finds the work done.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from loaders.beton import BetonWriter, page_size_for
from loaders.pack import (
    FORMAT_VERSION,
    IMAGES,
    MANIFEST,
    MODES,
    SAMPLES,
    Item,
    Pack,
    digest,
    file_sha256,
    fingerprint_of,
)
from loaders.workers import ordered_map

log = logging.getLogger(__name__)
_NAMED = 5


@dataclass(frozen=True)
class _Stored:
    blob: bytes
    crc32: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Encoder:
    """item -> the bytes to be stored, or the reason why there are none."""

    open_image: Callable[[Any], Image.Image]
    transform: Callable[[Image.Image], np.ndarray]
    format: str
    quality: int

    def __call__(self, item: Item) -> _Stored | str:
        try:
            pixels = self.transform(self.open_image(item.payload))
        except Exception as error:  # decoders raise anything for a damaged image
            return f"{type(error).__name__}: {error}"
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"the transform gave {pixels.dtype} {pixels.shape} for {item.key}; "
                "it must give uint8 (H, W, 3)"
            )
        blob = pixels.tobytes()
        if self.format == "jpeg":
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
            blob = buffer.getvalue()
        return _Stored(blob, zlib.crc32(blob), pixels.shape[:2])


def encode(
    out: Path,
    *,
    name: str,
    items: Sequence[Item],
    open_image: Callable[[Any], Image.Image],
    transform: Callable[[Image.Image], np.ndarray],
    transform_spec: Mapping[str, Any],
    classes: Sequence[str],
    source_fingerprint: str,
    extra: Mapping[str, Any] | None = None,
    format: Literal["raw", "jpeg"] = "raw",
    quality: int = 90,
    workers: int = 1,
    on_error: Literal["refuse", "skip"] = "refuse",
    progress: bool = True,
) -> Pack:
    """Encode `items`, in their order, as the pack `out`, and open it.

    `open_image(payload)` gives a PIL image and `transform(image)` uint8 [H, W, 3], the same shape
    for each image; with `workers` > 1 both run in spawned processes and must be picklable.
    `transform_spec` (JSON-able) is the transform's identity, `source_fingerprint` that of the files
    behind the payloads. `format`: raw pixels, or JPEG of `quality` 1..100.

    An image that cannot be opened is refused with the others (ValueError names the first few) or,
    by `on_error`, skipped and listed in the manifest. A pack of the same request that is already at
    `out` is returned as it is; anything else at `out` raises FileExistsError.
    """
    out = Path(out)
    _check_request(items, classes, format, quality, workers, on_error)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "classes": list(classes),
        "transform": dict(transform_spec),
        "format": format,
        "quality": quality if format == "jpeg" else None,
        "source_fingerprint": source_fingerprint,
        "extra": dict(extra or {}),
    }
    labelled = [(item.label, item.source, item.key) for item in items]
    manifest["request"] = digest([manifest, labelled, on_error])
    out.parent.mkdir(parents=True, exist_ok=True)
    with _turn(out.with_name(f".{out.name}.lock")):
        if out.exists():
            return _finished(out, manifest["request"])
        temporary = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed: the turn is ours
        temporary.mkdir()
        try:
            encoder = _Encoder(open_image, transform, format, quality)
            with (
                closing(ordered_map(encoder, items, workers)) as results,
                tqdm(results, name, len(items), unit="image", disable=not progress) as bar,
            ):
                refuse = on_error == "refuse"
                written = _write_images(temporary, items, bar, MODES[format], refuse)
            kept, skipped, (height, width) = written
            labels = [item.label for item in kept]
            per_class = np.bincount(labels, minlength=len(classes)).tolist()
            manifest |= {"count": len(kept), "per_class": per_class, "skipped": skipped}
            _write_manifest(temporary, manifest | {"height": height, "width": width})
            Pack.open(temporary)
            temporary.rename(out)
            _fsync(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Pack.open(out)


def _check_request(
    items: Sequence[Item],
    classes: Sequence[str],
    format: str,
    quality: int,
    workers: int,
    on_error: str,
) -> None:
    if not items:
        raise ValueError("no items: a pack holds at least one image")
    if format not in MODES or on_error not in ("refuse", "skip"):
        raise ValueError(f"format={format!r}, on_error={on_error!r}: raw | jpeg, refuse | skip")
    if not 1 <= quality <= 100 or workers < 1:
        raise ValueError(f"quality={quality} must be 1..100, workers={workers} at least 1")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise ValueError(f"two items have the key {item.key!r}; keys must be unique")
        if not 0 <= item.label < len(classes):
            raise ValueError(f"{item.key}: label {item.label} is not one of {len(classes)} classes")
        seen.add(item.key)


def _finished(out: Path, request: str) -> Pack:
    if not (out / MANIFEST).exists():
        raise FileExistsError(f"{out}: exists and is no pack; delete it or choose another folder")
    pack = Pack.open(out)
    if pack.manifest["request"] != request:
        raise FileExistsError(
            f"{out}: holds another pack (other images, classes, transform or options); "
            "delete it or choose another folder"
        )
    return pack


def _write_images(
    folder: Path, items: Sequence[Item], results: Iterable[_Stored | str], mode: int, refuse: bool
) -> tuple[list[Item], list[dict[str, str]], tuple[int, int]]:
    """Write images and samples. Returns the items kept, those skipped and the shape (H, W)."""
    kept: list[Item] = []
    crc32: list[int] = []
    skipped: list[dict[str, str]] = []
    with ExitStack() as stack:
        writer, shape = None, (0, 0)
        for item, stored in zip(items, results, strict=True):
            if isinstance(stored, str):
                skipped.append({"key": item.key, "source": item.source, "reason": stored})
                continue
            height, width = stored.shape
            if writer is None:
                shape = stored.shape
                page_size = page_size_for(2 * 3 * height * width)  # a JPEG may outgrow its pixels
                writer = BetonWriter(folder / IMAGES, len(items), page_size)
                stack.callback(writer.close)
            if stored.shape != shape:
                raise ValueError(f"{item.key}: its shape is {stored.shape}, others have {shape}")
            writer.add(stored.blob, mode=mode, height=height, width=width, label=item.label)
            kept.append(item)
            crc32.append(stored.crc32)
        if skipped and (refuse or not kept):
            raise ValueError(_undecodable(skipped, len(items)))
        assert writer is not None
        _write_samples(folder / SAMPLES, kept, crc32)
        writer.finish(tag=file_sha256(folder / SAMPLES).encode())
    return kept, skipped, shape


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    sha256 = {name: file_sha256(folder / name) for name in (IMAGES, SAMPLES)}
    whole = {**manifest, "sha256": sha256}
    whole["fingerprint"] = fingerprint_of(whole)
    with (folder / MANIFEST).open("w") as file:
        json.dump(whole, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _fsync(folder)


def _write_samples(path: Path, kept: Sequence[Item], crc32: Sequence[int]) -> None:
    source = max(1, *(len(item.source) for item in kept))
    key = max(1, *(len(item.key) for item in kept))
    dtype = [("label", "<i8"), ("source", f"<U{source}"), ("key", f"<U{key}"), ("crc32", "<u4")]
    rows = [(item.label, item.source, item.key, crc) for item, crc in zip(kept, crc32, strict=True)]
    with path.open("wb") as file:
        np.save(file, np.array(rows, dtype), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _undecodable(skipped: Sequence[Mapping[str, str]], count: int) -> str:
    named = "; ".join(f"{one['key']} ({one['reason']})" for one in skipped[:_NAMED])
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return (
        f"{len(skipped)} of {count} images cannot be decoded: {named}{more}. "
        "Repair or fetch them again, or leave them out with on_error=skip"
    )


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Hold `lock` alone. The kernel frees the lock of a process that dies."""
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that encodes this pack", lock)
                fcntl.flock(file, fcntl.LOCK_EX)
            if lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
