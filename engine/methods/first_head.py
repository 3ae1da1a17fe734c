"""The first head of a backbone that brings none: the recipe of the cell that makes it."""

from __future__ import annotations

from dataclasses import replace

from engine.methods import linear_probe
from engine.recipe import schema


def first_head(cell: schema.Recipe) -> schema.Recipe:
    """The recipe of a backbone's first head, on the upstream set, by that of any cell.

    It sees the whole training split, and so do all cells that start from it, whatever part of a
    set (`dataset.train_images`, `shots`, `portion`) they train on.
    """
    method = linear_probe.Recipe(
        name="linear_probe",
        title="LP",
        module="linear_probe",
        l2=cell.model.head.l2,
        anchor="zero",
    )
    return replace(
        cell,
        downstream=cell.dataset.upstream,
        dataset=replace(cell.dataset, train_images=0, shots=0, portion=1.0),
        method=method,
        optimizer=schema.OptimizerRecipe(),
        train=schema.TrainRecipe(),
        seed=0,
    )
