"""The layout of a campaign's files. RUNS/CAMPAIGN/plans/ID is the folder of a plan."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.store.artifacts import STORE
from loaders.files.durable import DamagedFile
from loaders.files.names import is_name
from loaders.files.root import Root

PLANS = "plans"
PLAN, RECORD = "plan.json", "evaluations.json"  # in a plan's folder
REPORT = "report"  # the job, and its output folder
CHECKSUMS = "SHA256SUMS"  # in a published folder; the format of the program sha256sum


@dataclass(frozen=True)
class PlanFolder:
    """A plan's folder and the folders around it. Access by `Root` follows no links below RUNS."""

    path: Path

    @property
    def name(self) -> str:
        """The plan's ID."""
        return self.path.name

    @property
    def campaign(self) -> Path:
        """The folder of the campaign: its plans, its report and its lock."""
        return self.path.parents[1]

    @property
    def runs(self) -> Path:
        """The runs folder: it contains the campaigns, the store and the packs."""
        return self.path.parents[2]

    @property
    def store(self) -> Path:
        """The folder of all artefacts."""
        return self.runs / STORE

    @property
    def plans(self) -> Path:
        """The folder of the campaign's plans, and Snakemake's working folder."""
        return self.path.parent

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.path / PLAN

    @property
    def record(self) -> Path:
        """The file from which the report is made. It exists once the campaign is finished."""
        return self.path / RECORD

    @property
    def lock(self) -> Path:
        """The file that a running campaign locks."""
        return self.campaign / ".lock"

    @property
    def report(self) -> Path:
        """The folder of the campaign's report."""
        return self.campaign / REPORT

    @property
    def remedy(self) -> str:
        """What brings a damaged file back."""
        return "run `rib campaign` again with the same arguments"

    @property
    def store_root(self) -> Root:
        return Root(self.runs).below(self.store)

    @property
    def campaign_root(self) -> Root:
        return Root(self.runs).below(self.campaign)

    @property
    def report_root(self) -> Root:
        return Root(self.runs).below(self.report)

    @property
    def root(self) -> Root:
        """Where a plan's jobs write."""
        return Root(self.runs).below(self.path)


@dataclass(frozen=True)
class PublishedFolder(PlanFolder):
    """A folder that `rib publish` wrote: plan, record, report and predictions of one campaign."""

    @property
    def campaign(self) -> Path:
        return self.path

    @property
    def runs(self) -> Path:
        return self.path

    @property
    def store(self) -> Path:
        return self.path

    @property
    def remedy(self) -> str:
        return "get another copy of the folder"


def in_campaign(folder: Path) -> list[PlanFolder]:
    """The folders of a campaign's plans, without links; a published folder is its plan's own.

    Raises DamagedFile if the campaign's own folder is a link, since a runs folder may be untrusted.
    """
    folder = folder.absolute()
    root = Root(folder.parent.resolve()).below(folder.name)
    if root.has(CHECKSUMS):
        return [PublishedFolder(root.path)]
    plans = root.below(PLANS)
    return [PlanFolder(plans.path / name) for name in plans.folders() if is_name(name)]


def in_runs(runs: Path) -> list[PlanFolder]:
    """The folders of all plans in a runs folder. Skips links and folders that cannot be read."""
    root, folders = Root(runs), list[PlanFolder]()
    for name in root.folders():
        with suppress(PermissionError, NotADirectoryError, DamagedFile):  # a file or a link
            plans = root.folders(f"{name}/{PLANS}")
            folders += [PlanFolder(runs / name / PLANS / plan) for plan in plans if is_name(plan)]
    return folders
