"""Several packs read as one, for a training on the union of datasets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from loaders.files.durable import digest
from loaders.pack import Pack


@dataclass(frozen=True)
class JoinedPack:
    """Packs whose images have one shape, with what training reads of a `Pack`. The samples of each
    follow those of the one before; pixels stay in the packs' files."""

    name: str
    packs: tuple[Pack, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.packs[0].shape

    @property
    def beton(self) -> Path:
        """The first pack's file; all are in one cache."""
        return self.packs[0].beton

    @cached_property
    def fingerprint(self) -> str:
        return digest({"joined": [pack.fingerprint for pack in self.packs]})

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each pack's first sample, and the number of all samples."""
        return np.cumsum([0, *map(len, self.packs)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """As `Pack.read`."""
        of_pack = np.searchsorted(self.starts, index, "right") - 1
        for number in np.unique(of_pack):
            here = of_pack == number
            out[here] = self.packs[number].pixels(index[here] - self.starts[number])

    def pixels(self, index: np.ndarray) -> np.ndarray:
        """As `Pack.pixels`."""
        out = np.empty((len(index), *self.shape, 3), np.uint8)
        self.read(index, out)
        return out
