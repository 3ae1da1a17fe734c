"""Whether the kernel says that memory ran out."""

from __future__ import annotations

from pathlib import Path

from engine.machine import memory


def test_kills_are_those_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    assert memory.out_of_memory_kills(tmp_path / "vmstat") == 3
    (tmp_path / "old").write_text("nr_free_pages 5\n")  # before Linux 4.13
    assert memory.out_of_memory_kills(tmp_path / "old") == 0
    assert memory.out_of_memory_kills(tmp_path / "nothing") == 0
    assert memory.out_of_memory_kills() >= 0  # this machine's
