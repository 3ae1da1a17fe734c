"""The campaign that trials disturb: two columns of four methods on drawn shapes, on a CPU."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import campaigns
import grids
import pytest

from engine import cli
from engine.grid import workflow
from engine.machine import quiet, ranks
from engine.report import page
from engine.store import pending
from faults.children import Child, Ended, before_change, die, fork
from faults.outcome import require

WORDS = ("dataset.sets=[outline,few]", "train.checkpoint_minutes=1e-9")  # after each step
EWC = "  ewc: {}\n"  # trains with the Fisher
RANKS = 2
FINISHED = 1.0
STAGES = (0.3, 0.45, 0.6, 0.75)  # of all changes to the folder, where a campaign is left unfinished
NEVER = 0  # the number of no change
SLICE = 8  # images: an evaluation of these small sets has slices too


class Campaign:
    """A folder with the drawings, the campaign's file, and what `run_undisturbed` left.

    `runs` is where trials happen. tables: the files of the report with numbers, by name. weights:
    of the cell that `launch` trains. changes: how often each of the two changes its folder.
    seconds: how long each takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "disk" / "runs"
        self.file, self.recipe = folder / "shapes.yaml", folder / "cell.yaml"
        self.runs.parent.mkdir(parents=True)
        grids.draw(folder / "images")
        (folder / "model.yaml").write_text(campaigns.MODEL)
        (folder / "data.yaml").write_text(campaigns.DATA.format(images=folder / "images"))
        text = campaigns.GRID.format(folder=folder)
        self.file.write_text(text + EWC)
        self.recipe.write_text(text.partition("methods:")[0] + "method: ewc\n")
        self.changes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def run_undisturbed(self) -> None:
        """What most trials are compared with; those of `read` need only the drawings."""
        started = time.monotonic()
        ended = self.run().wait()
        require(ended.code == 0, f"the undisturbed campaign failed: {ended.text[-2000:]}")
        self._measure("campaign", started)
        self.tables = self.numbers()
        self._copy(FINISHED)
        self.clear()
        started = time.monotonic()
        for ended in [child.wait() for child in self.launch()]:
            require(ended.code == 0, f"the undisturbed training failed: {ended.text[-2000:]}")
        self._measure("launch", started)
        self.weights = self.trained()

    def _measure(self, what: str, started: float) -> None:
        self.seconds[what] = time.monotonic() - started
        self.changes[what] = int((self.folder / "changes").read_text())

    def _copy(self, stage: float) -> None:
        shutil.copytree(self.runs, self.folder / f"{stage:.0%}")

    def clear(self) -> None:
        """Empty `runs`."""
        if self.runs.exists():
            shutil.rmtree(self.runs)

    def restore(self, stage: float) -> None:
        """Let `runs` be as a campaign left it that was killed after this share of its changes."""
        copy = self.folder / f"{stage:.0%}"
        self.clear()
        if copy.exists():
            shutil.copytree(copy, self.runs)
            return
        self.run(at=int(stage * self.changes["campaign"]), act=die).wait()
        self._copy(stage)

    def words(self, command: str) -> list[str]:
        """The words of a command of `rib` on this campaign."""
        return [command, str(self.file), f"runs={self.runs}", *WORDS]

    @property
    def cell_words(self) -> list[str]:
        """The words of `engine/launch.py` for the cell that `launch` trains."""
        return [f"recipe={self.recipe}", f"runs={self.runs}", *WORDS]

    def run(
        self,
        command: str = "campaign",
        *,
        at: int = NEVER,
        act: Callable[[], object] = die,
    ) -> Child:
        """Start `rib campaign`, whose jobs run in its process, or `rib metrics`.

        `act` is done before change number `at` of `runs`.
        """

        def work() -> int:
            jobs_in_this_process(pytest.MonkeyPatch())
            return cli.main(self.words(command))

        return self._fork(work, "log", at, act)

    def launch(
        self, at: int = NEVER, act: Callable[[], object] = die, rank: int = 0
    ) -> list[Child]:
        """Start the ranks of `engine/launch.py`, which train EWC; rank `rank` does `act`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            self._fork(
                partial(cli.main, ["train", *self.cell_words]),
                f"log.{number}",
                at if number == rank else NEVER,
                act,
                {**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            )
            for number in reversed(range(RANKS))  # the first rank is the last to write `changes`
        ][::-1]

    def _fork(
        self,
        work: Callable[[], int],
        log: str,
        at: int,
        act: Callable[[], object],
        variables: Mapping[str, str] | None = None,
    ) -> Child:
        def counting() -> int:
            count = before_change(self.runs, at, act)
            code = work()
            if os.environ.get("RANK", "0") == "0":
                (self.folder / "changes").write_text(str(count[0]))
            return code

        return fork(counting, self.folder / log, variables or {})

    def numbers(self) -> dict[str, bytes]:
        """The content of all tables of the report."""
        (report,) = self.runs.glob("shapes*/report")
        paths = [*report.glob("*.csv"), *report.glob("table.txt")]
        return {path.name: path.read_bytes() for path in paths}

    def trained(self) -> bytes:
        """The weights of the cell that `launch` trains."""
        (file,) = self.runs.glob("store/cells/ewc-outline-*/weights.safetensors")
        return file.read_bytes()

    def ends_as_undisturbed(self, before: str) -> None:
        """Run the campaign, and compare its tables; `before` says what was done to it."""
        self.compare(self.run().wait(), before)

    def compare(self, ended: Ended, before: str) -> None:
        """Raise FellShort unless a campaign ended well, with the tables of an undisturbed one."""
        require(ended.code == 0, f"after {before}, exit code {ended.code}: {ended.text[-1500:]}")
        numbers = self.numbers()
        names = sorted(numbers.keys() | self.tables.keys())
        differ = [name for name in names if numbers.get(name) != self.tables.get(name)]
        require(not differ, f"after {before}, other numbers in {', '.join(differ)}")


def jobs_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """As `campaigns.in_this_process`; the process group is made when the first job needs it.

    The page lacks the program that draws its figures, which takes as long as all else of a report.
    """
    patch.setattr(page.vl_convert, "javascript_bundle", lambda source: "")
    campaigns.in_this_process(patch)
    watch = workflow._watch

    def starting(*words: object) -> None:
        ranks.start("cpu")
        watch(*words)  # pyright: ignore[reportArgumentType]

    patch.setattr(workflow, "_watch", starting)


def warm_up() -> None:
    """Import what the forked commands need; they are quiet, have a thread each and small slices."""
    import torch

    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RIB_PROGRESS": "off"}
    for name in grids.RANK_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    quiet.libraries()
    import deepspeed  # noqa: F401

    from engine.commands import campaign, outcome, report  # noqa: F401
    from engine.report import finish  # noqa: F401

    pending.SLICE = SLICE
