"""Compiled loops: stored on disk, or compiled anew where that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels.threads import compiled

numba = pytest.importorskip("numba")
LOOP = """
from kernels.threads import compiled

@compiled(fastmath=True)
def increased(x):
    return x + 1

assert increased(2) == 3
print(sum(increased.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_the_next_process_finds_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(kernels.__file__).parents[1]))
    (tmp_path / "loop.py").write_text(LOOP)
    command = [sys.executable, str(tmp_path / "loop.py")]
    hits = [subprocess.check_output(command, text=True) for _ in range(2)]
    assert [int(count) for count in hits] == [0, 1]


def test_they_do_without_a_folder(monkeypatch):
    real = numba.njit

    def njit(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(fastmath=True)(lambda x: x + 1)(2) == 3
