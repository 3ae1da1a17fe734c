"""`rib export`: write a campaign's model, or a cell, as a folder that timm or open_clip loads."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.campaigns.find_campaign import find_campaign
from engine.commands import refuse_overwriting
from engine.machine.terminal import announce

if TYPE_CHECKING:
    from engine.exchange.export import DescribedModel

OF_CAMPAIGN = ("method", "downstream", "setting", "seed")  # options that choose a model


def run(arguments: argparse.Namespace) -> None:
    refuse_overwriting(arguments.out, arguments.force, is_folder=True)
    announce(f"reading {arguments.source}")
    folder = Path(arguments.source)
    is_cell = (folder / "cell.json").is_file()
    chosen = [name for name in OF_CAMPAIGN if getattr(arguments, name) is not None]
    if is_cell and (chosen or arguments.overrides):
        raise ValueError(f"{folder} is a single cell: only --alpha applies to it")
    campaign = None if is_cell else find_campaign(arguments.source, arguments.overrides)
    from engine.exchange import export  # here, because these import torch
    from engine.exchange.model_card import card_of_campaign, results_of
    from engine.model_files.descriptions import read_classes

    card = ""
    if campaign is None:
        row = export.row_of_cell(folder.resolve(), arguments.alpha)
    else:
        evaluation = export.choose(campaign.record.evaluations, vars(arguments))
        row = export.row_of_campaign(campaign, evaluation)
        card = card_of_campaign(campaign, evaluation, results_of(campaign))
    if arguments.classes:
        row = replace(row, classes=read_classes(arguments.classes))
    write(row, arguments.out, card)


def write(row: DescribedModel, out: Path, card: str) -> None:
    """Write a model as a folder for timm or open_clip, and print how to load it.

    card: its text, or empty. A README.md that the user wrote stays.
    """
    from engine.exchange.export import write_model
    from engine.exchange.model_card import remove_card, write_card
    from engine.store.tensors import PROMPT

    remove_card(out)  # of a previous model
    how = write_model(row, out)
    print(f"{row.title}, {len(row.classes)} classes: {out}")
    if (out / PROMPT).is_file():
        print(
            "warning: the model lacks its input prompt, without which its predictions differ. Add "
            f"the tensor in {out / PROMPT} to every normalized image"
        )
    print(how)
    if card and (file := write_card(out, card)):
        print(f"model card: {file}")
