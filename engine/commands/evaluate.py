"""`rib evaluate`: evaluate checkpoints, or all models of a finished campaign, on your images."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import refuse_overwriting
from engine.machine import first_line
from engine.store.artifacts import STORE, Store
from loaders import shards

if TYPE_CHECKING:
    from engine.evaluation.accuracies import OnSet

MOST_ALPHAS = 1000  # in a range; each is a model in memory
DECIMALS = 6  # of an alpha in tables
UNDECODABLE = "dataset.undecodable"
AMONG = {
    "none": "among all of the head's classes",
    "present": "among the dataset's classes (--mask present)",
    "benchmark": "among the dataset's classes for IN-A, IN-R and ObjectNet, among all for others "
    "(--mask benchmark)",
}


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate", help="evaluate checkpoints, or a campaign, on your images"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe override")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--models", nargs="+", metavar="FILE", help="checkpoints, timm folders or cells"
    )
    source.add_argument(
        "--campaign", metavar="NAME",
        help="finished campaign, of which all models are evaluated; repeat its overrides",
    )  # fmt: skip
    parser.add_argument(
        "--arch", help="architecture of all models: a timm name, or open_clip:NAME (default: from "
        "the cell.json or config.json next to the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--sets", nargs="+", required=True, metavar="[NAME=]FOLDER",
        help="dataset: folder of <class>/<image>, webdataset or parquet files, or a pack",
    )  # fmt: skip
    parser.add_argument(
        "--alphas", help="weights for interpolating two models: 0:1:0.1 or 0,0.5,1 (default: none)"
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE",
        help="class names in the order of the head's outputs, one per line, or a cell.json "
        "(default: from files next to the checkpoints, or ImageNet-1K's for 1000 outputs)",
    )  # fmt: skip
    parser.add_argument(
        "--mask", choices=tuple(AMONG), default="none",
        help="possible predictions: all of the head's classes (none, default), the dataset's "
        "(present), or as in published accuracies on IN-A, IN-R and ObjectNet (benchmark)",
    )  # fmt: skip
    parser.add_argument("--intervals", action="store_true", help="add 95%% intervals over images")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="CSV file (default: accuracy.csv, or accuracy-on-SET.csv in the campaign's report)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite that file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sets = named_sets(arguments.sets)
    expected = {
        "sets": (sets.values(), "a folder with one folder of images per class, or shards"),
        "models": (map(Path, arguments.models or ()), "a checkpoint, or a folder of one"),
    }
    for option, (places, kind) in expected.items():
        for place in places:  # before the slow imports
            if not shards.exists(place):
                raise ValueError(
                    f"--{option}: {place} does not exist: name {kind} (docs/own-set.md)"
                )
    first_line.show(f"reading {arguments.campaign or ', '.join(arguments.models)}")
    rows, text, files = (_campaign if arguments.campaign else _models)(arguments, sets)
    from engine.machine import ranks

    if ranks.rank() == 0:
        _write(rows, files)
        print(text)
        for file in dict.fromkeys(files.values()):
            print(f"\ntable  {file.resolve()}")
    ranks.stop()


def _models(
    arguments: argparse.Namespace, sets: Mapping[str, Path]
) -> tuple[list[OnSet], str, dict[str, Path]]:
    """The rows, their text for the terminal, and the file of each dataset's rows."""
    files = dict.fromkeys(sets, arguments.out or Path("accuracy.csv"))
    for file in files.values():
        refuse_overwriting(file, arguments.force, is_folder=False)
    alphas = parse_alphas(arguments.alphas) if arguments.alphas else None
    from engine.exchange import user_models
    from engine.machine import ranks
    from engine.model_files.descriptions import read_classes
    from engine.report import terminal

    resolved, models, classes = user_models.described(
        list(map(Path, arguments.models)),
        arguments.arch,
        arguments.overrides,
        read_classes(arguments.classes) if arguments.classes else None,
    )
    device = ranks.start(resolved.device)
    with Store(Path(resolved.runs) / STORE).in_use():
        rows = user_models.evaluate(
            resolved,
            models,
            sets,
            device,
            classes=classes,
            alphas=alphas,
            mask=arguments.mask,
            intervals=arguments.intervals,
        )
    mixed = f"(1 - alpha) {models[0]} + alpha {models[-1]}, {resolved.model.arch}\n"
    unsure = ", ± half its 95% interval over source images" if arguments.intervals else ""
    title = f"{mixed if alphas else ''}percent top-1 {AMONG[arguments.mask]}{unsure}"
    return rows, f"{title}\n\n{terminal.accuracies(rows)}", files


def _campaign(
    arguments: argparse.Namespace, sets: Mapping[str, Path]
) -> tuple[list[OnSet], str, dict[str, Path]]:
    """As `_models`."""
    from engine.campaigns import record
    from engine.campaigns.plan import make_plan
    from engine.errors import CampaignError

    for option in ("arch", "alphas", "classes"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} requires --models: leave it out with --campaign")
    # It is about reading the user's images, unless the campaign ran with it.
    theirs = [each for each in arguments.overrides if each.key != UNDECODABLE]
    try:
        run = record.find(arguments.campaign, arguments.overrides)
    except CampaignError:
        if len(theirs) == len(arguments.overrides):
            raise
        run = record.find(arguments.campaign, theirs)
    undecodable = make_plan(arguments.campaign, arguments.overrides).recipe.dataset.undecodable
    shown = run.place.report_root
    files = {name: arguments.out or shown.at(f"accuracy-on-{name}.csv") for name in sets}
    for file in files.values():
        refuse_overwriting(file, arguments.force, is_folder=False)
    from engine.exchange import own_sets
    from engine.machine import ranks
    from engine.report import terminal

    device = ranks.start(run.plan.device)
    with Store(run.place.store).in_use():
        rows = own_sets.evaluate(
            run,
            sets,
            device,
            mask=arguments.mask,
            intervals=arguments.intervals,
            undecodable=undecodable,
        )
    text = terminal.changes(rows, run.record.downstreams, run.record.methods)
    if arguments.intervals:
        text += "\nThe file has a 95% interval over source images for every change."
    name = run.place.campaign.name
    return rows, f"{text}\nRI, mRI and the report of {name} do not change.", files


def _write(rows: Sequence[OnSet], files: Mapping[str, Path]) -> None:
    """Write the rows of each dataset to its CSV file."""
    import pandas

    from engine.machine.files import room_for
    from engine.measures.tables import write_csv

    table = pandas.DataFrame(map(dataclasses.asdict, rows))
    for file, of_file in table.groupby(table["evaluated_on"].map(files), sort=False):
        with room_for(file):
            write_csv(file, of_file)


def named_sets(words: Sequence[str]) -> dict[str, Path]:
    """Datasets by name, from arguments FOLDER or NAME=FOLDER.

    Raises ValueError if two datasets have the same name, or a name cannot be part of a path.
    """
    from engine.recipe.checks import check_name

    places: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():
            name, folder = Path(word).resolve().name, word
            if set("*?[") & set(name):
                raise ValueError(f"--sets {word}: name the dataset, as in --sets NAME={word}")
        check_name("--sets", name)
        if name in places:
            raise ValueError(
                f"two datasets have the same name, {places[name]} and {folder}: rename one, as in "
                f"--sets NAME={folder}"
            )
        places[name] = Path(folder)
    return places


def parse_alphas(text: str) -> list[float]:
    """`0:1:0.1` (both ends included) or `0,0.5,1`, each once.

    Raises ValueError for any other text, and for a range of more than `MOST_ALPHAS`.
    """
    separator = ":" if ":" in text else ","
    try:
        numbers = [float(word) for word in text.split(separator)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        if separator == ",":
            return list(dict.fromkeys(round(number, DECIMALS) for number in numbers))
        start, stop, step = numbers
        if step <= 0 or stop < start:
            raise ValueError
        steps = int((stop - start) / step + 1e-9)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"alphas {text!r}: write START:STOP:STEP or a,b,c") from error
    if steps >= MOST_ALPHAS:
        raise ValueError(f"alphas {text!r} are {steps + 1} models: give at most {MOST_ALPHAS}")
    return [round(start + number * step, DECIMALS) for number in range(steps + 1)]
