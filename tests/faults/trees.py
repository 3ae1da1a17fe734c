"""Kind `tree`: a process of a whole tree gets a signal: rib, Snakemake, a job, a rank, a shell."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

import grids

from faults.campaign import RANKS, Campaign
from faults.children import HANGS_S
from faults.ending import ENDS_WITHIN_S
from faults.outcome import FellShort, patience, require

ROOT = Path(__file__).resolve().parents[2]
TRIAL = "RIB_FAULTS_TRIAL"  # a variable that all processes of a tree inherit
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
ROLES = {  # by words of the command line
    "job": "engine.commands.job",
    "torchrun": "torch.distributed.run",
    "launcher": "deepspeed.launcher.launch",
    "deepspeed": "/deepspeed ",
    "rank": "engine/launch.py",
    "snakemake": "snakemake",
    "rib": "engine.cli",
}
COMMANDS = ("campaign", "campaign", "python", "torchrun", "deepspeed")


class Tree:
    """A command and all processes that it starts, which are told by a variable."""

    def __init__(self, command: list[str], campaign: Campaign) -> None:
        self.name = uuid.uuid4().hex
        self.log = campaign.folder / "log.tree"
        with self.log.open("wb") as log:
            self.root = subprocess.Popen(
                command,
                cwd=campaign.folder,
                env=grids.environment() | {TRIAL: self.name, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> dict[str, list[int]]:
        """Its living processes by role."""
        roles: dict[str, list[int]] = defaultdict(list)
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{TRIAL}={self.name}".encode() in (place / "environ").read_bytes():
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    role = next((r for r, text in ROLES.items() if text in words), "shell")
                    roles[role].append(int(place.name))
        return roles

    def wait(self) -> int:
        """The exit code of its root. Raises FellShort where it does not end."""
        try:
            return self.root.wait(patience(HANGS_S))
        except subprocess.TimeoutExpired as error:
            raise FellShort(f"it did not end within {error.timeout:.0f} s") from error

    def end(self) -> None:
        """Kill what is left."""
        while left := self.processes():
            for number in (number for numbers in left.values() for number in numbers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.1)
        self.root.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


def tree(campaign: Campaign, rng: random.Random) -> str:
    """No process outlives the disturbed command by 5 s, and the same command finishes its work."""
    campaign.clear()
    kind, number, moment = rng.choice(COMMANDS), rng.choice(SIGNALS), rng.random()
    command, stopped_s = command_of(campaign, kind), rng.uniform(1, 6)
    seconds = moment * campaign.seconds.get(kind, 10.0)
    running = Tree(command, campaign)
    try:
        time.sleep(seconds)
        roles = running.processes()
        if not roles:
            running.wait()
            return f"{kind}: ended within {seconds:.0f} s"
        role = rng.choice(sorted(roles))
        done = f"{kind}: {number.name} to a {role} after {seconds:.0f} s"
        process = rng.choice(roles[role])
        send(process, number)
        if number is signal.SIGSTOP:
            time.sleep(stopped_s)
            send(process, signal.SIGCONT)
            code = running.wait()
            require(code == 0, f"after {done}, exit code {code}: {running.text()}")
        else:
            code = running.wait()
            finished = is_finished(campaign, kind)
            require(code or finished, f"after {done}, exit code 0 of what is not finished")
        end = time.monotonic() + patience(ENDS_WITHIN_S)
        while (left := running.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        require(not left, f"after {done}, processes are left: {dict(left)}")
    finally:
        running.end()
    finish(campaign, kind, command, done)
    return done


def finish(campaign: Campaign, kind: str, command: list[str], done: str) -> None:
    started, again = time.monotonic(), Tree(command, campaign)
    try:
        code = again.wait()
        require(code == 0, f"after {done}, exit code {code}: {again.text()}")
        campaign.seconds[kind] = max(campaign.seconds.get(kind, 0), time.monotonic() - started)
    finally:
        again.end()
    if kind == "campaign":
        require(campaign.numbers() == campaign.tables, f"after {done}, other numbers")
    elif kind != "python":  # on one rank, sums round otherwise
        require(campaign.trained() == campaign.weights, f"after {done}, other weights")


def is_finished(campaign: Campaign, kind: str) -> bool:
    if kind == "campaign":
        return campaign.numbers() == campaign.tables
    return any(campaign.runs.glob("store/cells/ewc-outline-*/done.json"))


def command_of(campaign: Campaign, kind: str) -> list[str]:
    """The command, with the words with which the undisturbed runs were started."""
    if kind == "campaign":
        return [sys.executable, "-m", "engine.cli", *campaign.words("campaign"), "--cores", "2"]
    launch = [str(ROOT / "engine" / "launch.py"), *campaign.cell_words]
    if kind == "torchrun":
        return grids.torchrun(RANKS, *launch)
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(RANKS)]
    return [*deepspeed, *launch] if kind == "deepspeed" else [sys.executable, *launch]


def send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
