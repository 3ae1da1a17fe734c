"""A share of a set's slices, where several jobs evaluate the set. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The slices that one of `of` processes computes: share `number`, counted from 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.of}"
