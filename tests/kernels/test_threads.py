"""Compiled loops: stored on disk, or compiled anew where that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernels.threads import compiled

numba = pytest.importorskip("numba")

SWEEP = """
import numpy as np
from kernels.transport import loops
q, g = np.zeros((2, 3), np.int16), np.zeros(3, np.float32)
columns = np.zeros(3, np.float32)
loops.sweep(q, g[:2], g, g[:2], g[:2].copy(), columns, g.copy())
assert np.allclose(columns, 2 / 3)
print(sum(loops.sweep.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_the_next_process_finds_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    hits = [subprocess.check_output([sys.executable, "-c", SWEEP], text=True) for _ in range(2)]
    assert [int(count) for count in hits] == [0, 1]


def test_they_do_without_a_folder(monkeypatch):
    real = numba.njit

    def njit(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(fastmath=True)(lambda x: x + 1)(2) == 3
