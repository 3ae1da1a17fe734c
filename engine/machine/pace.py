"""Images a second."""

from __future__ import annotations

import time


class Pace:
    """Counts images, and tells how many there were a second since it was last read."""

    def __init__(self) -> None:
        self._since, self._images = time.perf_counter(), 0

    def add(self, images: int) -> None:
        self._images += images

    def read(self) -> float:
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._since, self._images = now, 0
        return rate


PROCESS = Pace()  # all that this process trains on or evaluates
