"""Kinds `mutate`, `full` and `readonly`: damaged files, no room, folders that are not written."""

import contextlib
import ctypes
import json
import os
import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faults.campaign import FINISHED, STAGES, Campaign
from faults.forked import Ended, FellShort, Skipped, require
from helpers.endings import heal

CPU_S = 10.0  # that a command may take before it ends in an error
CLONE_NEWNS = 0x00020000  # linux/sched.h
IGNORED = (".snakemake", ".lock", "locks", "logs")
OF_ANY_NAME = ("done", "events", "pending", "report", "tables", "figures", "used-by")
VALUES: list[Any] = [
    *(None, True, -1, 0, 10**400, 1e308, "", "../../x", "é\0", [], {}, [[]], "x" * 9000),
]
# What of a finished campaign is deleted too, so that more than its report is read again.
LOST = ("", "shapes*/report", "shapes*", "store/predictions", "store/distances", "store/cells")
NO_ROOM = ("No space left", "make room")
TMPFS = ["-t", "tmpfs", "-o", "size=512m", "tmpfs"]
FILLER = "filler"  # on a disk that is full


def mutate(campaign: Campaign, rng: random.Random) -> str:
    """The next commands give the same numbers, or one line that names the file and a remedy.

    What the line says is done, until the numbers are there.
    """
    stage = rng.choice([*[FINISHED] * len(STAGES), *STAGES])
    campaign.restore(stage)
    kinds = files_by_kind(campaign.runs)
    paths = kinds[rng.choice(sorted(kinds))]
    path = rng.choice(paths)
    change = rng.choice([*CHANGES, *(JSON_CHANGES if path.suffix == ".json" else ())])
    change(path, rng, paths)
    done = f"{change.__name__} of {path.relative_to(campaign.runs)}, campaign {stage:.0%} done"
    lost = rng.choice(LOST) if stage == FINISHED else ""
    for folder in campaign.runs.glob(lost) if lost else ():
        if not path.is_relative_to(folder):
            shutil.rmtree(folder)
            done += f", {folder.name} deleted"
    if stage == FINISHED and not lost and rng.random() < 0.5:
        check_healed(campaign, "report", path, done)
    check_healed(campaign, "campaign", path, done)
    return done


def files_by_kind(runs: Path) -> dict[tuple[str, str], list[Path]]:
    """The files of a campaign by kind: the folder's and their own name, or the end of it."""
    kinds = defaultdict(list)
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        parts = path.relative_to(runs).parts
        if not {*parts} & {*IGNORED}:
            above = path.relative_to(runs).parent.name
            place = {"store": "".join(parts[1:2]), "packs": "packs"}.get(parts[0], above)
            kinds[place, path.suffix if place in OF_ANY_NAME else path.name].append(path)
    return kinds


def check_healed(campaign: Campaign, command: str, damaged: Path, done: str) -> None:
    """Raise FellShort unless a command ends well once all is done that its errors say."""

    def give(command: str) -> str:
        ended, given = campaign.run(command), f"{done}, `rib {command}`"
        if ended.code == 0:
            campaign.check(ended, given)
            return ""
        return only_error(ended, given)

    try:
        heal(give, command, damaged)
    except (OSError, AssertionError) as error:
        raise FellShort(f"after {done}: {error!r}") from error


def only_error(ended: Ended, done: str) -> str:
    """The error line of a command that ended as a user's error does. Raises FellShort."""
    text = ended.text[-1500:]
    errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    require(ended.code == 2, f"after {done}, exit code {ended.code}: {text}")
    require("Traceback" not in ended.text, f"after {done}, a traceback: {text}")
    require(len(errors) == 1, f"after {done}, {len(errors)} error lines: {text}")
    require(ended.cpu_s <= CPU_S, f"after {done}, {ended.cpu_s:.0f} s of CPU before {text}")
    return errors[0]


def flip(path: Path, rng: random.Random, _files: list[Path]) -> None:
    """Change up to 8 bytes; half of the time those that are not zero, as padding is."""
    data = np.fromfile(path, np.uint8)
    content = np.flatnonzero(data) if rng.random() < 0.5 else np.arange(len(data))
    for _ in range(rng.randint(1, 8) if len(content) else 0):
        data[rng.choice(content)] ^= rng.randint(1, 255)
    path.write_bytes(data.tobytes())


def cut(path: Path, rng: random.Random, _: list[Path]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([0, rng.randrange(max(1, len(data)))])])


def more(path: Path, rng: random.Random, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 99)))


def delete(path: Path, rng: random.Random, _: list[Path]) -> None:
    path.unlink()


def folder(path: Path, rng: random.Random, _: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def another(path: Path, rng: random.Random, alike: list[Path]) -> None:
    """The content of another file of its kind."""
    path.write_bytes(rng.choice(alike).read_bytes())


def value(path: Path, rng: random.Random, _: list[Path]) -> None:
    """A value of JSON becomes another one."""
    values = json.loads(path.read_bytes())
    section, key = rng.choice(_places(values) or [([values], 0)])
    section[key] = rng.choice(VALUES)
    path.write_text(json.dumps(values), encoding="utf-8")


def swap(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Two values of JSON change places."""
    values = json.loads(path.read_bytes())
    places = _places(values)
    if len(places) > 1:
        (a, i), (b, j) = rng.sample(places, 2)
        a[i], b[j] = b[j], a[i]
    path.write_text(json.dumps(values), encoding="utf-8")


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Where each value that holds no others stands: its list or dict, and its index or key."""
    inside = list(values.items() if isinstance(values, dict) else enumerate(values))
    places = []
    for key, item in inside:
        places += _places(item) if item and isinstance(item, dict | list) else [(values, key)]
    return places


CHANGES: tuple[Callable[[Path, random.Random, list[Path]], None], ...] = (
    *(flip, cut, more, delete, folder, another),
)
JSON_CHANGES = (value, swap, value, swap)


def full(campaign: Campaign, rng: random.Random) -> str:
    """The disk fills up before a change; once there is room, the same command finishes."""
    campaign.clear()
    disk = campaign.runs.parent
    at, left = max(1, int(rng.random() * campaign.changes)), rng.randrange(1 << 16)
    done = f"the disk full but for {left} bytes at change {at}"
    with mounted([*TMPFS, str(disk)], disk):
        ended = campaign.run(at=at, act=lambda: fill(disk, left))
        if ended.code != 0:
            line = only_error(ended, done)
            require(any(words in line for words in NO_ROOM), f"after {done}, no disk in: {line}")
        (disk / FILLER).unlink(missing_ok=True)
        campaign.check(campaign.run(), done)
    return done


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes of a disk."""
    state = os.statvfs(disk)
    with (disk / FILLER).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left))


def readonly(campaign: Campaign, rng: random.Random) -> str:
    """A folder of the campaign cannot be written; once it can, the same command finishes."""
    stage, command = rng.choice([FINISHED, *STAGES]), rng.choice(["campaign", "report"])
    command = command if stage == FINISHED else "campaign"
    campaign.restore(stage)
    folders = [campaign.runs, *(path for path in campaign.runs.rglob("*") if path.is_dir())]
    folder = rng.choice(sorted(path for path in folders if ".snakemake" not in path.parts))
    name = folder.relative_to(campaign.runs)
    done = f"{name} read-only, campaign {stage:.0%} done, `rib {command}`"
    with mounted(["--bind", str(folder), str(folder)], folder):
        mount(["-o", "remount,bind,ro", str(folder)])
        ended = campaign.run(command)
        if ended.code == 0:
            campaign.check(ended, done)
        else:
            line = only_error(ended, done)
            require(str(folder) in line, f"after {done}, the folder is not in: {line}")
    campaign.check(campaign.run(), done)
    return done


def keep_mounts() -> None:
    """Let what this process mounts be seen by it and its children alone, and end with them.

    Where that is not allowed, neither is mounting.
    """
    if ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@contextlib.contextmanager
def mounted(words: list[str], place: Path) -> Iterator[None]:
    """Mount something on a folder. Raises Skipped where this process may not."""
    mount(words)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(words: list[str]) -> None:
    if os.geteuid():
        raise Skipped("only root can mount")
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mount is not possible: {done.stderr.strip()}")
