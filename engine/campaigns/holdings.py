"""The contents of a runs folder: campaigns, artefacts, and which campaigns need which artefacts.

Imports no torch and reads no artefact.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from engine.campaigns import plan_folder, record
from engine.campaigns.plan_folder import PLAN, RECORD, PlanFolder
from engine.campaigns.record import FinishedCampaign
from engine.store import use
from engine.store.artifacts import STORE, Artifact, Store
from loaders.files.root import WRITING, Root
from loaders.files.typed_json import DamagedFile

PACKS = "packs"
OF_TRACKERS = ("tensorboard", "wandb")  # folders that trackers write into a runs folder
MERGED = re.compile("-models-[0-9a-f]{8}$")  # the folder of several models' common report


@dataclass(frozen=True)
class StartedCampaign:
    """A campaign that was started. record: None until it is finished, or if it is damaged.

    fault: why the record cannot be read, or empty.
    """

    place: PlanFolder
    record: FinishedCampaign | None
    fault: str = ""

    @property
    def name(self) -> str:
        """The name of the campaign's folder."""
        return self.place.campaign.name


@dataclass(frozen=True)
class Held:
    """An artefact. size: bytes on disk. needed_by: names of finished campaigns that need it.
    made_by: as in its marker."""

    artifact: Artifact
    size: int
    needed_by: tuple[str, ...]
    made_by: Mapping[str, str] = field(default_factory=dict)


def campaigns(runs: Path) -> list[StartedCampaign]:
    """The campaigns in a runs folder, oldest plan first; see `strays` for those that it overlooks.

    A record without its plan counts as a campaign.
    """
    return [_begun(place) for place in dict.fromkeys(place for _, place in changed(runs))]


def changed(runs: Path) -> list[tuple[int, PlanFolder]]:
    """When plans and records in a runs folder were written (`st_mtime_ns`), oldest first."""
    found = []
    for place in plan_folder.in_runs(runs):
        for file in (place.plan, place.record):
            with suppress(OSError, DamagedFile):
                found.append((place.root.at(file).stat().st_mtime_ns, place))
    return sorted(found, key=itemgetter(0))


def strays(runs: Path) -> list[str]:
    """What may hide a campaign from `campaigns`, each with a remedy.

    These are links that lead out of the runs folder or into its store, folders that cannot be read,
    and plans elsewhere than in RUNS/CAMPAIGN/plans.
    """
    found, todo = list[str](), [runs]
    expected = {place.path for place in plan_folder.in_runs(runs)}
    while todo:
        here = todo.pop()
        try:
            with os.scandir(here) as entries:
                inner = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(f"{here} cannot be read ({error.strerror}): make it readable")
            continue
        if here not in expected and any(entry.name in (PLAN, RECORD) for entry in inner):
            found.append(
                f"{here} is not in {runs}/CAMPAIGN/{plan_folder.PLANS}: move its campaign there, "
                f"or out of {runs} if it has a store of its own"
            )
        for entry in inner:
            if entry.is_symlink():
                if entry.name in (PLAN, RECORD) or not _is_walked(entry.path, runs):
                    found.append(
                        f"{entry.path} is a link, which is not followed: move what it leads to here"
                    )
            # An artefact contains no campaign, and there may be many.
            elif entry.is_dir(follow_symlinks=False) and here.parent != runs / STORE:
                todo.append(here / entry.name)
    return sorted(found)


def _is_walked(link: str, runs: Path) -> bool:
    """Whether `strays` finds what a link leads to without following it, as for wandb's links."""
    target, real = Path(os.path.realpath(link)), runs.resolve()
    return target.exists() and target.is_relative_to(real) and (real / STORE) not in target.parents


def doubts(runs: Path, begun: Sequence[StartedCampaign]) -> list[str]:
    """Why more artefacts may be needed than the records of finished campaigns list; with remedies.

    begun: all campaigns in the folder. Empty if every campaign is known, readable and finished.
    """
    found = [*strays(runs), *_without_plan(runs, begun)]
    if not begun:
        found.append(
            f"{runs} contains no campaign, so nothing says which artefacts are needed: delete "
            f"folders in {runs / STORE} yourself"
        )
    for each in begun:
        if fault := each.fault or _fault_of_plan(each):
            found.append(fault)
        elif each.record is None:
            found.append(
                f"{each.name} is unfinished: finish it, or delete its plan ({each.place.path})"
            )
    return found


def _without_plan(runs: Path, begun: Sequence[StartedCampaign]) -> list[str]:
    """Folders whose plans may be elsewhere, such as on a disk that is not mounted."""
    known = {each.place.path for each in begun}
    lacking = [place.path for place in plan_folder.in_runs(runs) if place.path not in known]
    campaigns = {each.place.campaign.name for each in begun} | {
        place.parents[1].name for place in lacking
    }
    lacking += [
        runs / name
        for name in Root(runs).folders()
        if name not in (STORE, PACKS, *OF_TRACKERS, *campaigns) and not MERGED.search(name)
    ]
    return [
        f"{folder} has no plan: mount its disk, or delete the folder if it is no campaign's"
        for folder in lacking
    ]


def artifacts(runs: Path, begun: Sequence[StartedCampaign]) -> list[Held]:
    """The finished artefacts in a runs folder's store, by kind and name.

    begun: all campaigns in the folder, and in others that share its store. Who needs a cell needs
    its snapshots, which are only there on request (`train.keep_snapshots`).
    """
    needed: dict[str, list[str]] = {}
    for each in begun:
        of_record = each.record.record.artifacts if each.record else []
        files = each.record.record.files if each.record else {}
        whom = each.name if each.place.runs == runs else str(each.place.campaign)
        for name in {*of_record, *(str(Path(file).parent) for file in files)}:
            needed.setdefault(name, []).append(whom)
    held = []
    for found, marker in Store(runs / STORE).artifacts():
        users = needed.get(f"{found.kind}/{found.name}", [])
        if found.kind == "snapshots":
            users = users + needed.get(f"cells/{marker.key.get('cell')}", [])
        held.append(Held(found, size_of(found.folder), tuple(users), marker.made_by))
    return sorted(held, key=lambda each: each.artifact.folder)


def unfinished(runs: Path) -> list[Held]:
    """What commands that did not finish left in a runs folder, and no campaign needs once all are
    finished: in the store, and old files of plans and reports that were not written to the end."""
    store = Store(runs / STORE)
    places = [*use.left_overs(store), *use.unfinished(store)]
    for plan in plan_folder.in_runs(runs):
        files = [plan.path / name for name in plan.root.names()]
        with suppress(DamagedFile):  # a link
            files += [plan.report / name for name in plan.report_root.files()]
        places += filter(_is_left_over, files)
    return [Held(Artifact(place), size_of(place), ()) for place in dict.fromkeys(places)]


def _is_left_over(file: Path) -> bool:
    """Whether a killed process left a file. A younger one may be in use."""
    if not WRITING.fullmatch(file.name):
        return False
    with suppress(FileNotFoundError):
        return time.time() - file.lstat().st_mtime > use.LEFT_OVER_S
    return False


def size_of(place: Path) -> int:
    """Total bytes of a file, or of the files below a folder, without following links."""
    total = place.lstat().st_size if place.is_file() else 0
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(FileNotFoundError):  # another process may delete it meanwhile
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _begun(place: PlanFolder) -> StartedCampaign:
    try:
        return StartedCampaign(place, record.read_record(place))
    except FileNotFoundError:
        return StartedCampaign(place, None)
    except (OSError, DamagedFile) as error:
        return StartedCampaign(place, None, str(error))


def _fault_of_plan(begun: StartedCampaign) -> str:
    """Why a finished campaign's plan cannot be read, or empty. It may be missing."""
    try:
        _ = begun.record and begun.record.plan
    except FileNotFoundError:
        return ""
    except (OSError, DamagedFile) as error:
        return str(error)
    return ""
