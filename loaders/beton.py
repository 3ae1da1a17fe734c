"""Reads and writes FFCV's .beton files without FFCV.

A pack stores an image and an integer label per sample, which needs a small part of FFCV's format.
Reading and writing that part without FFCV has three advantages: packs work where FFCV cannot be
built; a source image that raises an error cannot hang the writer; and a damaged file raises an
error, where FFCV would abort the process or silently return black images.

Layout (format version 2, little-endian): a 24-byte header; 1041 bytes for each of the two fields;
one 24-byte row per sample; zeros up to a page; pages of blobs, none of which crosses a page; the
allocation table up to the end of the file. FFCV ignores the arguments of an image field; here they
hold the `tag`, which ties a file to its pack.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO

import numpy as np

VERSION = 2
JPEG, RAW = 0, 1
PAGE_SIZE = 8 << 20
_PAGES = [1 << power for power in range(21, 32)]  # sizes that FFCV supports
_IMAGE_FIELD, _LABEL_FIELD = 2, 1
_REMEDY = "delete its folder and run again"

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("table", "<u8"),
    ]
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "S1024")])
ROW = np.dtype(
    {
        "names": ["mode", "width", "height", "pointer", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_ROWS_START = HEADER.itemsize + 2 * FIELD.itemsize


def page_size_of(height: int, width: int) -> int:
    """Returns the page size (a power of two, at least 8 MiB) for images of this shape."""
    most = 2 * 3 * height * width  # a JPEG may be larger than its pixels
    return max(PAGE_SIZE, 1 << (most - 1).bit_length())


class BetonWriter:
    """Writes up to `capacity` samples of one shape, in order; `finish` makes the file readable.

    A sample is H * W * 3 bytes of pixels (`RAW`) or a JPEG file (`JPEG`). With fewer than
    `capacity` samples, the remaining rows stay zero. `take` reuses samples that an earlier writer
    left in the file; the first `add` cuts off the rest.
    """

    def __init__(self, file: IO[bytes], capacity: int, mode: int, height: int, width: int) -> None:
        """file: open for reading and writing; the writer closes it."""
        self._file = file
        self._is_cut = False
        self._image = mode, width, height
        self._page_size = page_size = page_size_of(height, width)
        self._rows = np.zeros(capacity, ROW)
        self._table = np.zeros(capacity, ALLOCATION)
        self._count = 0
        self._end = _up(_ROWS_START + self._rows.nbytes, page_size)

    def add(self, blob: bytes, label: int) -> None:
        assert 0 < len(blob) <= self._page_size, len(blob)
        pointer = self._place(len(blob))
        self._file.seek(pointer)
        if not self._is_cut:  # only once: it is slow over a network
            self._file.truncate()
            self._is_cut = True
        self._file.write(blob)
        self._note(pointer, len(blob), label)

    def take(self, size: int, crc32: int, label: int) -> bool:
        """Like `add`, for a sample that an earlier writer left. Returns False if it is damaged."""
        pointer = self._place(size)
        self._file.seek(pointer)
        if zlib.crc32(self._file.read(size)) != crc32:
            return False
        self._note(pointer, size, label)
        return True

    def _place(self, size: int) -> int:
        page_is_full = self._end % self._page_size + size > self._page_size
        return _up(self._end, self._page_size) if page_is_full else self._end

    def _note(self, pointer: int, size: int, label: int) -> None:
        self._rows[self._count] = *self._image, pointer, label
        self._table[self._count] = self._count, pointer, size
        self._count += 1
        self._end = pointer + size

    def close(self) -> None:
        self._file.close()

    def finish(self, tag: bytes = b"") -> None:
        """Writes the table, the rows and, last, the header; then fsyncs."""
        fields = np.array([(_IMAGE_FIELD, b"image", tag), (_LABEL_FIELD, b"label", b"")], FIELD)
        table_start = _up(self._end, self._page_size)
        header = np.array((VERSION, 2, self._page_size, self._count, table_start), HEADER)
        self._file.truncate(self._end)
        self._file.seek(table_start)
        self._file.write(self._table[: self._count].tobytes())
        self._file.seek(HEADER.itemsize)
        self._file.write(fields.tobytes() + self._rows[: self._count].tobytes())
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())


@dataclass(frozen=True)
class Beton:
    """A validated .beton file with one image and one integer label per sample.

    `rows`: structured array [N] (mode, width, height, pointer, label). `sizes`: uint64 [N], the
    bytes of each blob. Blobs are read with pread instead of mmap: a file truncated during use
    raises an error instead of SIGBUS.
    """

    path: Path
    tag: bytes
    rows: np.ndarray
    sizes: np.ndarray
    stamp: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path) -> Beton:
        """Reads and checks everything except the blobs.

        Raises FileNotFoundError, or ValueError with the first fault of the file.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            header = _array(path, file.read(HEADER.itemsize), HEADER, 1)[0]
            count, table_start = int(header["samples"]), int(header["table"])
            _check_header(path, header, status.st_size)
            fields = _array(path, file.read(2 * FIELD.itemsize), FIELD, 2)
            rows = _array(path, file.read(count * ROW.itemsize), ROW, count)
            file.seek(table_start)
            table = _array(path, file.read(), ALLOCATION, count)
        if fields["type"].tolist() != [_IMAGE_FIELD, _LABEL_FIELD]:
            raise ValueError(f"{path}: its fields are not one RGB image and one integer label")
        table = table[np.argsort(table["sample"], kind="stable")]
        _check_table(path, header, rows, table)
        return cls(path, bytes(fields["arguments"][0]), rows, table["size"], _stamp(status))

    def __len__(self) -> int:
        return len(self.rows)

    @contextmanager
    def _unchanged(self) -> Iterator[FileIO]:
        """Yields the open file. Raises ValueError if it was replaced after validation."""
        with self.path.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self.stamp:
                raise ValueError(f"{self.path}: changed after it was opened; open the pack again")
            yield file

    def blobs(self, index: Iterable[int]) -> Iterator[bytes]:
        """Yields the stored bytes of the given samples, in the given order.

        Raises ValueError for a truncated file, and for a file that changed after it was opened.
        """
        with self._unchanged() as file:
            for sample in index:
                size, pointer = int(self.sizes[sample]), int(self.rows["pointer"][sample])
                blob = os.pread(file.fileno(), size, pointer)
                if len(blob) != size:
                    raise ValueError(f"{self.path}: ends inside sample {sample}; {_REMEDY}")
                yield blob

    def fill(self, index: Iterable[int], out: Iterable[np.ndarray]) -> Iterator[memoryview]:
        """Reads raw samples directly into `out` (uint8 [H, W, 3] each, contiguous).

        Yields the bytes of each sample once they are read. Raises as `blobs` does.
        """
        with self._unchanged() as file:
            for sample, pixels in zip(index, out, strict=True):
                pointer = int(self.rows["pointer"][sample])
                if os.preadv(file.fileno(), [pixels.data], pointer) != pixels.nbytes:
                    raise ValueError(f"{self.path}: ends inside sample {sample}; {_REMEDY}")
                yield pixels.data


def _up(offset: int, page_size: int) -> int:
    return -(-offset // page_size) * page_size


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _array(path: Path, data: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{path}: truncated; {_REMEDY}")
    return np.frombuffer(data, dtype)


def _check_header(path: Path, header: np.void, file_size: int) -> None:
    version, fields, page_size, count, table_start = header.tolist()
    expected = table_start + count * ALLOCATION.itemsize
    sizes = f"{file_size} bytes where its header says {expected}"
    for sound, fault in (
        (version == VERSION, f".beton format {version} is not supported, only {VERSION}"),
        (fields == 2, f"holds {fields} fields, not an image and a label"),
        (page_size in _PAGES, f"impossible page size {page_size}; {_REMEDY}"),
        (table_start and count, f"no samples, or its writer did not finish; {_REMEDY}"),
        (file_size == expected, f"truncated or altered: {sizes}; {_REMEDY}"),
    ):
        if not sound:
            raise ValueError(f"{path}: {fault}")


def _check_table(path: Path, header: np.void, rows: np.ndarray, table: np.ndarray) -> None:
    page_size, table_start = header["page_size"].astype(np.uint64), header["table"]
    start, size = table["pointer"], table["size"]
    inside = (start >= _ROWS_START + rows.nbytes) & (start < table_start) & (size > 0)
    inside &= size <= page_size - start % page_size  # so start + size cannot overflow below
    inside &= start + size <= table_start
    known = (rows["mode"] == RAW) | (rows["mode"] == JPEG)
    pixels = rows["width"].astype(np.uint64) * rows["height"] * np.uint64(3)
    known &= (pixels > 0) & ((rows["mode"] == JPEG) | (pixels == size))
    order = np.argsort(start)
    apart = np.ones(len(table), bool)
    apart[order[1:]] = start[order[1:]] >= (start + size)[order[:-1]]
    for sound, fault in (
        (table["sample"] == np.arange(len(rows)), "is missing from the allocation table"),
        (start == rows["pointer"], "has two addresses"),
        (inside, "lies outside the pages of the file"),
        (known, "has an impossible mode, size or shape"),
        (apart, "overlaps another"),
    ):
        if not sound.all():
            raise ValueError(f"{path}: altered: sample {sound.argmin()} {fault}; {_REMEDY}")
