"""Publish a finished campaign: its predictions and numbers, as a data set repository of the Hub.

    README.md                      the data set's card, whose metadata the Hub reads
    plan.json  evaluations.json    the campaign's plan and record
    versions.json                  versions of packages, and the processor
    predictions/SET/MODEL.parquet  a row per image: `KEYS`, then columns as of `read_predictions`
    seen/  replicates/  probe_sets/     predictions of the other roles (`Evaluation`)
    report/                        results.json and CSV files
    weights/CELL/                  if asked for
    SHA256SUMS                     of all files except the card

Paths are reduced to their last names, and what schedulers and failed jobs said is left out.
"""

from __future__ import annotations

import dataclasses
import io
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from engine.campaigns import record, seal
from engine.campaigns.compared import versions_of
from engine.campaigns.plan_folder import CHECKSUMS, PublishedFolder
from engine.campaigns.record import FinishedCampaign, Record
from engine.errors import CampaignError
from engine.exchange.cards import CARD, render_card
from engine.measures import predictions
from engine.measures.rows import PROBE, REPLICATE, SEEN, TEST, Evaluation, ModelOnSet, Role, of_role
from engine.model_files.descriptions import CELL, PROMPT, VERSIONS, WEIGHTS
from engine.report import number_files
from engine.report.results import of_campaign
from loaders.files import typed_json
from loaders.files.durable import file_hash
from loaders.files.names import identifier
from loaders.files.new_folder import new_folder
from loaders.files.root import Root, move

FOLDERS: dict[Role, str] = {  # of Parquet files
    TEST: "predictions",
    SEEN: "seen",
    REPLICATE: "replicates",
    PROBE: "probe_sets",
}
KEYS = pa.schema(
    [(name, pa.string()) for name in ("model", "method", "variant")]
    + [("alpha", pa.float64())]
    + [(name, pa.string()) for name in ("setting", "downstream", "evaluated_on")]
    + [("seed", pa.int64())]
)  # a model on a dataset, the same in all rows of a file
# A path that starts at the root, at a home folder or above the working folder, within a text.
_PATH = re.compile(r"(?<![\w/.~])(?:~[\w.-]*|\.\.)?(?:/[^\s/'\"`,;:)]+)+/?")


def publish(run: FinishedCampaign, folder: Path, *, weights: bool = False) -> None:
    """Write a finished campaign into a new folder; it appears only when it is complete.

    weights: with the weights of all trained cells. Raises ValueError if the folder exists, and
    CampaignError for an unfinished campaign, a smoke run, and a report that is missing or altered.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another place with --out")
    name = run.record.name
    if run.record.missing:
        raise CampaignError(f"{name} is unfinished: run it again, then publish")
    if run.record.limit:
        raise CampaignError(f"{name} is a smoke run, whose numbers are not results")
    if not seal.is_shown(run.place):
        raise CampaignError(
            f"the report of {name} is missing or was altered: write it again with `rib report`"
        )
    with new_folder(folder) as new:
        _write(run, PublishedFolder(new), weights)
        move(new, folder)


def _write(run: FinishedCampaign, place: PublishedFolder, weights: bool) -> None:
    root = place.root
    plan = typed_json.read_unaltered(run.place.plan, "run the campaign again", run.place.root)
    root.write(place.plan, typed_json.with_digest(public(plan)))
    root.write(VERSIONS, msgspec.json.format(msgspec.json.encode(versions_of(run))))
    published = record.write_record(place, _record(run, root))
    number_files.write_numbers(place.report, of_campaign(without_distances(published)))
    for name in run.record.artifacts if weights else ():
        cell = run.place.store_root.below(name)
        for file in (CELL, WEIGHTS, PROMPT) if cell.has(WEIGHTS) else ():
            if cell.has(file):
                root.write(f"weights/{cell.path.name}/{file}", cell.file(file).read_bytes())
    root.write(CARD, card(published.record).encode())
    names = [name for name in root.files() if name != CARD]
    sums = "".join(f"{file_hash(root.file(name))}  {name}\n" for name in names)
    root.write(CHECKSUMS, sums.encode())


def _record(run: FinishedCampaign, root: Root) -> Record:
    """The record with the published predictions, which this writes, and without what is private."""
    evaluations = [
        dataclasses.replace(row, path=Path(_predictions(root, row))) for row in run.evaluations
    ]
    paths = [row.path.as_posix() for row in evaluations]
    private = run.record
    return dataclasses.replace(
        private,
        name=Path(private.name).stem,
        methods=public(private.methods),
        settings=public(private.settings),
        rows=[
            dataclasses.replace(row, method=public(row.method), settings=public(row.settings))
            for row in private.rows
        ],
        attempts=[
            dataclasses.replace(attempt, error=("failed" if attempt.error else ""), queued_as="")
            for attempt in private.attempts
        ],
        artifacts=[],
        evaluations=evaluations,
        files={name: file_hash(root.file(name)) for name in paths},
    )


def _predictions(root: Root, row: Evaluation) -> str:
    """Write an evaluation's predictions; returns their name."""
    stored = predictions.read_predictions(row.path)
    values = keys_of(row)
    columns = [
        *(pa.repeat(pa.scalar(values[field.name], field.type), len(stored)) for field in KEYS),
        *stored.columns,
    ]
    schema = pa.schema([*KEYS, *stored.schema], stored.schema.metadata)
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd")
    parts = [row.method, row.downstream, row.variant, row.alpha, row.setting, row.model, row.seed]
    label = identifier(",".join(str(part) for part in parts if part not in ("", None, {})))
    name = f"{FOLDERS[row.role]}/{identifier(row.evaluated_on)}/{label}.parquet"
    root.write(name, file.getvalue())
    return name


def keys_of(row: Evaluation) -> dict[str, Any]:
    """The values of `KEYS` in the published predictions of an evaluation."""
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(ModelOnSet)}
    return values | {"setting": str(row.setting), "seed": row.seed}


def without_distances(run: FinishedCampaign) -> FinishedCampaign:
    """The campaign without what is not computed from predictions."""
    return FinishedCampaign(dataclasses.replace(run.record, distances=None), run.place)


def public(value: Any) -> Any:
    """A JSON value in which paths are their last names."""
    if isinstance(value, dict):
        return {public(key): public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    if not isinstance(value, str):
        return value
    if value.startswith("rib "):
        return shlex.join(_word(word) for word in shlex.split(value))
    return _word(value) if value.startswith(("/", "~", "..")) else _PATH.sub(_last, value)


def _word(word: str) -> str:
    """A word of a command, or a path, that may contain spaces."""
    key, equals, path = word.rpartition("=")
    is_path = path.startswith(("/", "~", ".."))
    return f"{key}{equals}{PurePath(path).name}" if is_path else _PATH.sub(_last, word)


def _last(found: re.Match[str]) -> str:
    return PurePath(found[0]).name


def card(published: Record) -> str:
    """The card of a published campaign, without numbers, which `rib audit` does not read in it."""
    sets = list(dict.fromkeys(row.evaluated_on for row in of_role(published.evaluations, TEST)))
    metadata = DatasetCardData(
        pretty_name=f"Predictions of {published.name} ({published.benchmark})",
        task_categories=["image-classification"],
        tags=["imagenet-rib", "robust-fine-tuning"],
        configs=[
            {"config_name": name, "data_files": f"predictions/{name}/*.parquet"}
            for name in map(identifier, sets)
        ],
    )
    methods = (str(row.settings["method.name"]) for row in published.rows)
    return render_card("data_card.md.j2", metadata, methods, record=published)
