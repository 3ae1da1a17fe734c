"""Assigns GPUs to the jobs of a user that share a machine."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from engine.machine.files import runtime_folder

_held: list[BinaryIO] = []


def names() -> list[str]:
    """Returns the names of the GPUs that this process sees, in its order; the same in all
    processes.
    """
    import torch  # imported here: a claim does not need it

    count = range(torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in count]


def claim(names: Sequence[str], number: int = 1, folder: Path | None = None) -> list[int]:
    """Claims `number` GPUs, those with the fewest claims, and returns their indices in `names`.

    A claim is a locked file in `folder` (default: the user's on this machine). The operating system
    unlocks it when this process, or a program that replaces it by exec, ends for any reason.
    """
    assert 0 < number <= len(names)
    folder = folder or runtime_folder() / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    claimed: list[int] = []
    for turn in itertools.count():
        for place, name in enumerate(names):
            if place not in claimed and _lock(folder / f"{name}-{turn}"):
                claimed.append(place)
                if len(claimed) == number:
                    return claimed
    raise AssertionError("there is always a next turn")


def _lock(path: Path) -> bool:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    os.set_inheritable(file.fileno(), True)  # a launcher that replaces this process keeps it
    _held.append(file)
    return True
