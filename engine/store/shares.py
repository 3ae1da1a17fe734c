"""A share of a set's slices, where several jobs evaluate the set. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """The slices that one of `of` processes computes: share `number`, counted from 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.of}"

    def slices(self, count: int) -> set[int]:
        """Numbers of its slices, which follow each other, of `count` in all."""
        return set(np.array_split(np.arange(count), self.of)[self.number].tolist())


def share_of(text: str) -> Share:
    """The share that `2/8` names. ValueError where it names none."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 0 < int(number) <= int(of)):
        raise ValueError(f"{text!r} is no share; write K/N, such as 2/8")
    return Share(int(number) - 1, int(of))
