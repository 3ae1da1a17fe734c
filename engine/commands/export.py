"""`rib export` and `rib merge`: write a campaign's model, a cell, or checkpoints merged into one
model with the methods of campaigns, as a folder that timm or open_clip loads."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.campaigns.find_campaign import find_campaign
from engine.commands import refuse_overwriting
from engine.machine.terminal import announce
from engine.measures.rows import TEST, of_role

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
    from engine.exchange.model_card import card_of_campaign
    from engine.model_files.descriptions import read_classes

    card = ""
    if campaign is None:
        row = export.row_of_cell(folder.resolve(), arguments.alpha)
    else:
        evaluation = export.choose(of_role(campaign.record.evaluations, TEST), vars(arguments))
        row = export.row_of_campaign(campaign, evaluation)
        card = card_of_campaign(campaign, evaluation)
    if arguments.classes:
        row = replace(row, classes=read_classes(arguments.classes))
    _write(row, arguments.out, card)


def merge(arguments: argparse.Namespace) -> None:
    from engine.exchange import user_merges
    from engine.exchange.model_card import card_of_merge
    from engine.machine import ranks
    from engine.model_files.descriptions import read_classes

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refuse_overwriting(arguments.out, arguments.force, is_folder=True)
    merged = user_merges.merged(
        arguments.method,
        arguments.models,
        arguments.base,
        arguments.overrides,
        holdout=arguments.holdout,
        arch=arguments.arch,
        classes=read_classes(arguments.classes) if arguments.classes else None,
    )
    if ranks.rank() == 0:
        _write(merged, arguments.out, card_of_merge(merged))
    ranks.stop()


def _write(row: DescribedModel, out: Path, card: str) -> None:
    """Write a model and print how to load it. A README.md that the user wrote stays."""
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
