"""What a finished campaign leaves, so that its tables and page can be made again without it.

A file beside the plan says where in the store the predictions of every evaluation lie, with their
checksums, and all that a report tells beside numbers. It holds no absolute path: a folder of runs
can be moved. No torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CampaignError
from engine.evaluation.drawn import Drawn, framed
from engine.grid import campaign
from engine.machine import files
from engine.measures import parallel, predictions
from engine.measures.distances import Matrix
from engine.measures.rows import DEFAULT_ALPHA, Evaluation
from engine.store import artifacts
from loaders.files import file_hash


@dataclass(frozen=True)
class SampleOf:
    """A set's sample: predictions of the whole by the pre-trained model, which give its order."""

    path: str
    images: int
    seed: list[int]


@dataclass(frozen=True)
class Record:
    """A grid's evaluations and settings; paths are relative to the store.

    asked: `campaign.asked` of the user's words. methods: key to title, in table order. files:
    SHA-256 of each path. contact_sheet: a PNG in base64, or empty. samples: by set, empty where all
    images were seen; sequential: whether sampling stopped as soon as intervals were narrow.
    """

    asked: str
    name: str
    sets: list[str]
    upstream: str
    methods: dict[str, str]
    settings: dict[str, Any]
    credits: list[dict[str, str]]
    contact_sheet: str
    holdout: bool
    distances: dict[str, Any] | None
    samples: dict[str, SampleOf]
    sequential: bool
    evaluations: list[Evaluation]
    files: dict[str, str]

    def matrix(self) -> Matrix | None:
        """The distances between all sets, where they are known."""
        return None if self.distances is None else Matrix.of(self.distances)


@dataclass(frozen=True, eq=False)
class FinishedCampaign:
    """A record and the folder of the plan that it lies in."""

    record: Record
    place: Path

    @property
    def report(self) -> Path:
        """The folder of the campaign's report."""
        return self.place.parents[1] / campaign.REPORT

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """Where predictions lie. Raises ValueError for files that are not what they were."""
        names = dict.fromkeys(str(one.path) for one in self.record.evaluations)
        paths = dict(zip(names, parallel.each(self._checked, names), strict=True))
        return [
            dataclasses.replace(one, path=paths[str(one.path)]) for one in self.record.evaluations
        ]

    @property
    def store(self) -> Path:
        """The folder of the artefacts that the record names."""
        return self.place.parents[2] / "store"

    def mix(self, evaluation: Evaluation) -> dict[str, float]:
        """The weight of each cell in the model of an evaluation, by the cell's name.

        Raises ValueError as `evaluations`.
        """
        file = self._checked(str(evaluation.path))
        return json.loads((file.parent / artifacts.MARKER).read_text())["key"]["mix"]

    @functools.cached_property
    def samples(self) -> dict[str, Drawn]:
        """The samples, by set; ValueError as `evaluations`."""
        found = {}
        for name, one in self.record.samples.items():
            frame, index = framed(predictions.read(self._checked(one.path)), one.seed)
            found[name] = Drawn(frame, one.images, index)
        return found

    @functools.cache  # noqa: B019  # a run lives as long as its process
    def _checked(self, name: str) -> Path:
        path = self.store / name
        again = f"delete {path.parent} and {self.place}, and run `rib campaign` again"
        if not path.is_file():
            raise ValueError(f"{path} is missing; {again}")
        if file_hash(path) != self.record.files[name]:
            raise ValueError(f"{path} was altered since the campaign ended; {again}")
        return path


def write(place: Path, record: Record) -> FinishedCampaign:
    """Keep a record in a plan's folder."""
    text = json.dumps(dataclasses.asdict(record), indent=1, default=str)
    files.write_atomic(place / campaign.RECORD, text.encode())
    return read(place)


def read(place: Path) -> FinishedCampaign:
    """The record in a plan's folder."""
    values: dict[str, Any] = json.loads((place / campaign.RECORD).read_text())
    values["evaluations"] = [_evaluation(row) for row in values["evaluations"]]
    values["samples"] = {name: SampleOf(**one) for name, one in values["samples"].items()}
    return FinishedCampaign(Record(**values), place)


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    """A row of the file; older files do not say which alpha tables show: it was the default."""
    usual = row["alpha"] in (None, DEFAULT_ALPHA)
    return Evaluation(**{"headline": usual, **row, "path": Path(row["path"])})


def find(name: str, overrides: Sequence[str]) -> FinishedCampaign:
    """The finished run of a campaign as it was asked for, the last one where there are several.

    Raises CampaignError where there is none.
    """
    folder, asked = campaign.asked(name, overrides)
    files = folder.glob(f"plans/*/{campaign.RECORD}")
    for file in (newest_first := sorted(files, key=lambda path: -path.stat().st_mtime_ns)):
        if json.loads(file.read_text())["asked"] == asked:
            return read(file.parent.resolve())
    command = " ".join(["rib campaign", name, *overrides])
    other = ", but one of other settings" if newest_first else ""
    raise CampaignError(
        f"{folder} holds no finished run of {name} as asked for{other}; `{command}` finishes it, "
        "and evaluates nothing again"
    )


def hashes(paths: Sequence[Path], store: Path) -> dict[str, str]:
    """SHA-256 by path relative to the store."""
    return {str(path.relative_to(store)): file_hash(path) for path in dict.fromkeys(paths)}
