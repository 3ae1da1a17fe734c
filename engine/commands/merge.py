"""`rib merge`: merge your checkpoints into one model, with the methods of campaigns."""

from __future__ import annotations

import argparse
import logging

from engine.commands import export, refuse_overwriting
from engine.exchange import user_merges
from engine.exchange.model_card import card_of_merge
from engine.machine import ranks
from engine.model_files.descriptions import read_classes


def run(arguments: argparse.Namespace) -> None:
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
        export.write(merged, arguments.out, card_of_merge(merged))
    ranks.stop()
