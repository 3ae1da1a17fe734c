"""The first head of a backbone that brings none: the recipe of the cell that makes it."""

from __future__ import annotations

from dataclasses import replace

from engine.methods import linear_probe, prototype
from engine.recipe import schema


def first_head(probe: schema.Recipe) -> schema.Recipe:
    """The recipe of a backbone's first head, made from the recipe of a probe of the upstream set.

    It sees the whole training split, and so do all cells that start from it, whatever part of a
    set (`dataset.train_images`, `shots`, `portion`) they train on.
    """
    head, names = probe.model.head, {"name": probe.method.name, "title": probe.method.title}
    method = linear_probe.Recipe(**names, module="linear_probe", l2=head.l2, anchor="zero")
    if head.kind == "prototype":
        method = prototype.Recipe(
            name="prototype",
            title="Class prototypes",
            module="prototype",
            scale=head.scale,
        )
    return replace(
        probe,
        dataset=replace(probe.dataset, train_images=0, shots=0, portion=1.0),
        method=method,
        optimizer=schema.OptimizerRecipe(),
        train=schema.TrainRecipe(),
        seed=0,
    )
