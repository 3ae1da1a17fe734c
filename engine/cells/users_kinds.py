"""Encode the datasets of users' kinds, each in a process of its own.

A kind's file may change Python and torch, such as by a hook on every module, and the process that
ran it would go on to fit the head. What a method's file may change, the store keeps apart
(`Store`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterable

import torch

from engine.cells.cell_plan import CellPlan, cell_of_plain
from engine.data import packs
from engine.data.sets import Sets
from engine.machine import entry, ranks
from engine.machine.files import cache_folder
from engine.machine.follower import following
from engine.recipe import kinds
from engine.recipe.finder import allow_users_files, is_users
from engine.recipe.schema import Recipe


def encode_apart(cell: CellPlan, names: Iterable[str]) -> None:
    """Encode the datasets of users' kinds, each in a process of its own; the first rank does.

    Raises ValueError if a process fails, which has then said why.
    """

    def encode() -> None:
        for name in dict.fromkeys(names):
            kind = kinds.of_set(cell.recipe.dataset, name).kind
            if is_users(kind) and not all(packs.is_encoded(each, name) for each in _sizes(cell)):
                command = [sys.executable, "-P", "-m", __name__, name]
                plain = json.dumps(dataclasses.asdict(cell))
                if code := subprocess.run(
                    following(command), input=plain, encoding="utf-8", check=False
                ).returncode:
                    raise ValueError(
                        f"{name} was not encoded: the process that ran {kind} ended with code "
                        f"{code}; its last lines say why"
                    )

    ranks.first(encode)


def _sizes(cell: CellPlan) -> list[Recipe]:
    """Recipes whose packs have the images of evaluation, and larger ones where training crops."""
    recipe = cell.recipe
    return [recipe, packs.to_train_on(recipe)] if recipe.train.crops else [recipe]


def _encode(name: str) -> None:
    cell = cell_of_plain(json.load(sys.stdin))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for recipe in _sizes(cell):
        sets = Sets(recipe, torch.device("cpu"), cache_folder())
        sets.classes  # noqa: B018  # another dataset may define them, and comes first
        with allow_users_files():
            sets[name]


if __name__ == "__main__":
    sys.exit(entry.guarded(lambda: _encode(*sys.argv[1:])))
