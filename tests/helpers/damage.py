"""How files and disks fail: a file is cut or has a flipped bit, and a disk is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cut(path: Path) -> None:
    """Leave the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, offset: int | None = None) -> None:
    """Flip a bit of the byte at `offset`, or of the byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 1
    path.write_bytes(data)


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses what would make a file longer than 1500 bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
