"""Kinds `full` and `readonly`: a disk without room, and folders that cannot be written."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.campaign import FINISHED, STAGES, Campaign
from faults.mutations import only_error
from faults.outcome import Skipped, require

SIZE = "512m"
LEFT = 64 * 1024  # bytes, the most that are left when the disk fills up
NO_ROOM = ("No space left", "make room")


def full(campaign: Campaign, rng: random.Random) -> str:
    """The disk fills up before a change; once there is room, the same command finishes."""
    campaign.clear()
    disk = campaign.runs.parent
    at, left = max(1, int(rng.random() * campaign.changes["campaign"])), rng.randrange(LEFT)
    done = f"the disk full but for {left} bytes at change {at}"
    filler = disk / "filler"

    def fill() -> None:
        state = os.statvfs(disk)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left))

    with mounted(["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], disk):
        ended = campaign.run(at=at, act=fill).wait()
        if ended.code != 0:
            line = only_error(ended, done)
            require(any(words in line for words in NO_ROOM), f"after {done}, no disk in: {line}")
        filler.unlink(missing_ok=True)
        campaign.ends_as_undisturbed(done)
    return done


def readonly(campaign: Campaign, rng: random.Random) -> str:
    """A folder of the campaign cannot be written; once it can, the same command finishes."""
    stage, command = rng.choice([FINISHED, *STAGES]), rng.choice(["campaign", "metrics"])
    command = command if stage == FINISHED else "campaign"
    campaign.restore(stage)
    folders = [campaign.runs, *(path for path in campaign.runs.rglob("*") if path.is_dir())]
    folder = rng.choice(sorted(path for path in folders if ".snakemake" not in path.parts))
    name = folder.relative_to(campaign.runs)
    done = f"{name} read-only, campaign {stage:.0%} done, `rib {command}`"
    with mounted(["--bind", str(folder), str(folder)], folder):
        _mount(["-o", "remount,bind,ro", str(folder)])
        ended = campaign.run(command).wait()
        if ended.code == 0:
            campaign.compare(ended, done)
        else:
            line = only_error(ended, done)
            require(str(folder) in line, f"after {done}, the folder is not in: {line}")
    campaign.ends_as_undisturbed(done)
    return done


@contextlib.contextmanager
def mounted(words: list[str], place: Path) -> Iterator[None]:
    """Mount something on a folder. Raises Skipped where this process may not."""
    _mount(words)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(words: list[str]) -> None:
    if os.geteuid():
        raise Skipped("only root can mount")
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mount is not possible: {done.stderr.strip()}")
