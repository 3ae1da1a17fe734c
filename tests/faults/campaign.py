"""The campaign that trials disturb: two columns of five methods on drawn shapes, on a CPU."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns import workflow
from engine.machine import ranks
from engine.machine.terminal import quiet_libraries
from engine.report import page
from engine.store import pending
from faults import forked
from faults.forked import Ended, before_change, die, require
from helpers import campaigns, grids

# Files of every kind are made: checkpoints after each step, slices, snapshots, a Fisher, a prompt.
METHODS = "  ewc: {}\n  visual_prompt: {}\n"
WORDS = (
    *("dataset.sets=[outline,few]", "extras.cka.images=8", "train.checkpoint_minutes=1e-9"),
    *("train.snapshots=2", "train.keep_snapshots=true", "train.epochs=1", "train.warmup_steps=1"),
)
SLICE = 8  # images
FINISHED = 1.0
STAGES = (0.3, 0.45, 0.6, 0.75)  # of all changes to the folder, where a campaign is left unfinished
NEVER = 0  # the number of no change


class Campaign:
    """A folder with the drawings, the campaign's file, and what an undisturbed campaign left.

    `runs` is where trials happen. words: those of every command. changes: how often the campaign
    changes its folder. tables: the files of the report with numbers, by name. seconds: that a
    command of `tree` takes. weights: of the cell of `recipe` that it trains.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "disk" / "runs"
        self.file, self.recipe = folder / "shapes.yaml", folder / "cell.yaml"
        self.runs.parent.mkdir(parents=True)
        grids.draw(folder / "drawings")
        text = campaigns.describe(folder, folder / "drawings").read_text()
        self.file.write_text(text + METHODS)
        self.recipe.write_text(text.partition("methods:")[0] + "method: ewc\n")
        self.words = [f"runs={self.runs}", *WORDS]
        self.seconds: dict[str, float] = {}
        self.weights: dict[str, bytes] = {}
        ended = self.run()
        require(ended.code == 0, f"the undisturbed campaign failed: {ended.text[-2000:]}")
        self.changes = int((folder / "changes").read_text())
        self.tables = self.numbers()
        shutil.copytree(self.runs, self.copy(FINISHED))

    def copy(self, stage: float) -> Path:
        """Where `runs` is kept as it was after this share of its changes."""
        return self.folder / f"{stage:.0%}"

    def clear(self) -> None:
        """Empty `runs`."""
        if self.runs.exists():
            shutil.rmtree(self.runs)

    def restore(self, stage: float) -> None:
        """Let `runs` be as a campaign left it that was killed after this share of its changes."""
        self.clear()
        if not self.copy(stage).exists():
            self.run(at=int(stage * self.changes))
            self.runs.rename(self.copy(stage))
        shutil.copytree(self.copy(stage), self.runs)

    def run(
        self, command: str = "campaign", *, at: int = NEVER, act: Callable[[], object] = die
    ) -> Ended:
        """The end of `rib campaign`, whose jobs run in its process, or `rib report`.

        `act` is done before change number `at` of `runs`.
        """

        def work() -> int:
            jobs_in_this_process(pytest.MonkeyPatch())
            count = before_change(self.runs, at, act)
            code = cli.main([command, str(self.file), *self.words])
            (self.folder / "changes").write_text(str(count[0]))
            return code

        return forked.run(work, self.folder / "log")

    def numbers(self) -> dict[str, bytes]:
        """The content of all tables of the report."""
        (report,) = self.runs.glob("shapes*/report")
        paths = [*report.glob("*.csv"), *report.glob("table.txt")]
        return {path.name: path.read_bytes() for path in paths}

    def check_numbers(self, before: str) -> None:
        numbers = self.numbers()
        names = sorted(numbers.keys() | self.tables.keys())
        differ = [name for name in names if numbers.get(name) != self.tables.get(name)]
        require(not differ, f"after {before}, other numbers in {', '.join(differ)}")

    def check(self, ended: Ended, before: str) -> None:
        """Raise FellShort unless a campaign ended well, with the tables of an undisturbed one."""
        require(ended.code == 0, f"after {before}, exit code {ended.code}: {ended.text[-1500:]}")
        self.check_numbers(before)


def jobs_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """As `campaigns.in_this_process`; the process group is made when the first job needs it.

    The page lacks the program that draws its figures, which takes as long as all else of a report.
    """
    patch.setattr(page.vl_convert, "javascript_bundle", lambda source: "")
    campaigns.in_this_process(patch)
    run_jobs = workflow.run_snakemake

    def starting(*words: object) -> None:
        ranks.start("cpu")
        run_jobs(*words)

    patch.setattr(workflow, "run_snakemake", starting)


def warm_up() -> None:
    """Import what the forked commands need; they are quiet, have a thread each and small slices."""
    import torch

    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RIB_PROGRESS": "off"}
    for name in grids.RANK_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    quiet_libraries()
    import deepspeed  # noqa: F401

    from engine.commands import campaign, outcome, report  # noqa: F401
    from engine.report import finish  # noqa: F401

    pending.SLICE = SLICE
