"""`rib evaluate`: evaluate checkpoints, or all models of a finished campaign, on your images."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import pandas

from engine.campaigns.find_campaign import find_campaign
from engine.campaigns.make_plan import make_plan
from engine.commands import refuse_overwriting
from engine.errors import CampaignError
from engine.evaluation.accuracies import OnSet
from engine.exchange import own_sets, user_models
from engine.machine import ranks
from engine.machine.files import room_for
from engine.measures.tables import write_csv
from engine.model_files.descriptions import read_classes
from engine.report import terminal
from engine.store.artifacts import STORE, Store
from engine.store.use import in_use

AMONG = {
    "none": "among all of the head's classes",
    "present": "among the dataset's classes (--mask present)",
    "benchmark": "as in the datasets' published accuracies (--mask benchmark)",
}


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sets: dict[str, Path] = {}
    for name, place in arguments.sets:
        if name in sets:
            raise ValueError(
                f"two datasets have the same name, {sets[name]} and {place}: rename one, as in "
                f"--sets NAME={place}"
            )
        sets[name] = place
    left_out: dict[Path, str] = {}
    if arguments.campaign:
        rows, text, files = _campaign(arguments, sets)
    else:
        rows, text, files = _models(arguments, sets, left_out)
    if ranks.rank() == 0:
        table = pandas.DataFrame(map(dataclasses.asdict, rows))
        for file, of_file in table.groupby(table["evaluated_on"].map(files), sort=False):
            with room_for(file):
                write_csv(file, of_file)
        print(text)
        for file in dict.fromkeys(files.values()):
            print(f"\ntable  {file.resolve()}")
        if left_out:
            reasons = "\n".join(left_out.values())
            print(f"\nnot evaluated: {len(left_out)} of {len(arguments.models)}\n{reasons}")
    ranks.stop()
    return int(bool(left_out))


def _models(
    arguments: argparse.Namespace, sets: Mapping[str, Path], left_out: dict[Path, str]
) -> tuple[list[OnSet], str, dict[str, Path]]:
    """The rows, their text for the terminal, and the file of each dataset's rows. left_out: as in
    `user_models.cells_of`."""
    file = arguments.out or Path("accuracy.csv")
    refuse_overwriting(file, arguments.force, is_folder=False)
    resolved, models, classes = user_models.described(
        arguments.models,
        arguments.arch,
        arguments.overrides,
        read_classes(arguments.classes) if arguments.classes else None,
    )
    device = ranks.start(resolved.device)
    with in_use(Store(Path(resolved.runs) / STORE)):
        rows = user_models.evaluate(
            resolved,
            models,
            sets,
            device,
            classes=classes,
            alphas=arguments.alphas,
            mask=arguments.mask,
            intervals=arguments.intervals,
            left_out=left_out,
        )
    mixed = f"(1 - alpha) {models[0]} + alpha {models[-1]}, {resolved.model.arch}\n"
    unsure = ", ± half its 95% interval over source images" if arguments.intervals else ""
    title = f"{mixed if arguments.alphas else ''}percent top-1 {AMONG[arguments.mask]}{unsure}"
    return rows, f"{title}\n\n{terminal.accuracies(rows)}", dict.fromkeys(sets, file)


def _campaign(
    arguments: argparse.Namespace, sets: Mapping[str, Path]
) -> tuple[list[OnSet], str, dict[str, Path]]:
    """As `_models`."""
    for option in ("arch", "alphas", "classes"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} requires --models: leave it out with --campaign")
    # It is about reading the user's images, unless the campaign ran with it.
    of_campaign = [
        override for override in arguments.overrides if override.key != "dataset.undecodable"
    ]
    try:
        run = find_campaign(arguments.campaign, arguments.overrides)
    except CampaignError:
        if len(of_campaign) == len(arguments.overrides):
            raise
        run = find_campaign(arguments.campaign, of_campaign)
    undecodable = make_plan(arguments.campaign, arguments.overrides).recipe.dataset.undecodable
    shown = run.place.report_root
    files = {name: arguments.out or shown.at(f"accuracy-on-{name}.csv") for name in sets}
    for file in files.values():
        refuse_overwriting(file, arguments.force, is_folder=False)
    device = ranks.start(run.plan.device)
    with in_use(Store(run.place.store)):
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
