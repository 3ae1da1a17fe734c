"""Whether the kernel says that memory ran out, in both versions of control groups and in none."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.machine import memory

V2, V1 = "0::/jobs/7\n", "3:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "file", "text", "count"),
    [
        (V2, "jobs/7/memory.events", "low 0\noom 9\noom_kill 2\noom_group_kill 5\n", 2),
        (V2, "memory.events", "oom_kill 3\n", 3),  # a container's group, under a path outside of it
        (V1, "memory/jobs/7/memory.oom_control", "under_oom 0\noom_kill 4\n", 4),
        (V2, "jobs/7/other", "oom_kill 8\n", 1),  # the root has no such file: the whole machine's
        ("", "none", "", 1),
    ],
)
def test_kills_are_those_of_our_control_group(
    tmp_path: Path, groups: str, file: str, text: str, count: int
) -> None:
    (tmp_path / "groups").write_text(groups)
    (tmp_path / "mount" / file).parent.mkdir(parents=True)
    (tmp_path / "mount" / file).write_text(text)
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 1\n")
    arguments = (tmp_path / name for name in ("groups", "mount", "vmstat"))
    assert memory.out_of_memory_kills(*arguments) == count


def test_a_machine_without_any_count(tmp_path: Path) -> None:
    assert memory.out_of_memory_kills(*[tmp_path / "nothing"] * 3) == 0
    assert memory.out_of_memory_kills() >= 0  # this machine's
