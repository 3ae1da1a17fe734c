"""The contents of a runs folder: campaigns, artefacts, and which campaigns need which artefacts.

Imports no torch and reads no artefact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from engine.campaigns import plan_folder, record
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.record import FinishedCampaign
from engine.store.artifacts import MARKER, STORE, Artifact, Store
from loaders.files.typed_json import DamagedFile

PACKS = "packs"
AGAIN = ("features", "fisher", "distances")  # kinds that can be recomputed when needed


@dataclass(frozen=True)
class Begun:
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
    """An artefact. size: bytes on disk. needed_by: names of finished campaigns that need it."""

    artifact: Artifact
    size: int
    needed_by: tuple[str, ...]


def campaigns(runs: Path) -> list[Begun]:
    """The campaigns in a runs folder, oldest plan first. Ignores links.

    A record without its plan counts as a campaign.
    """
    changed = [
        (file.stat().st_mtime_ns, place)
        for place in plan_folder.in_runs(runs)
        for file in (place.plan, place.record)
        if place.root.has(file)
    ]
    in_order = [place for _, place in sorted(changed, key=itemgetter(0))]
    return [_begun(place) for place in dict.fromkeys(in_order)]


def artifacts(runs: Path, begun: Sequence[Begun]) -> list[Held]:
    """The finished artefacts in a runs folder's store."""
    needed: dict[str, list[str]] = {}
    for each in begun:
        of_record = each.record.record.artifacts if each.record else []
        files = each.record.record.files if each.record else {}
        for name in {*of_record, *(str(Path(file).parent) for file in files)}:
            needed.setdefault(name, []).append(each.name)
    return [
        Held(found, size_of(found.folder), tuple(needed.get(f"{found.kind}/{found.name}", ())))
        for found in _finished(runs / STORE)
    ]


def unneeded(held: Sequence[Held], begun: Sequence[Begun]) -> list[Held]:
    """The artefacts that no campaign's record needs.

    An unfinished campaign has no record yet. If there is one, only artefacts that can be recomputed
    count.
    """
    is_finished = all(each.record for each in begun)
    return [
        each for each in held if not each.needed_by and (is_finished or each.artifact.kind in AGAIN)
    ]


def size_of(folder: Path) -> int:
    """Total bytes of the files below a folder, without following links."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(place, name)).st_size
    return total


def _finished(store: Path) -> Iterator[Artifact]:
    files = Store(store).files
    for kind in files.folders():
        for name in files.folders(kind):
            if files.has(f"{kind}/{name}/{MARKER}"):
                yield Artifact(store / kind / name)


def _begun(place: PlanFolder) -> Begun:
    try:
        return Begun(place, record.read(place))
    except FileNotFoundError:
        return Begun(place, None)
    except DamagedFile as error:
        return Begun(place, None, str(error))
