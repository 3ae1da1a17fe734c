"""A checkpoint that another program trained, in place of a training.

A table, a CSV file, lists the checkpoints of a grid, a line each:

    name,method,downstream,seed,file,head
    ft-1,fine_tune,imagenet_r,0,ft/imagenet_r.pt,

name: as the user knows it, for errors. method: the row of the campaign. downstream, seed: the
column. file: of the weights, relative to the table: safetensors, or a state dict of `torch.save`,
under timm's or open_clip's names, as WiSE-FT's, FLYP's and model soups' programs nest them. head:
a file with `weight` [C, D] and maybe `bias` [C]; empty if `file` has the head, or if a CLIP model's
text tower makes it. The method `pretrained`, without downstream and seed, replaces the pretrained
model.

`rib campaign NAME --checkpoints TABLE` makes rows of this method (`engine.exchange.listed_models`).
"""

from __future__ import annotations

import dataclasses

from engine import models
from engine.machine.files import cache_folder
from engine.methods.base import Context, Derived
from engine.methods.beyond.options.checkpoint import Recipe
from engine.model_files.checkpoint_table import Line
from engine.model_files.descriptions import describe_checkpoint
from engine.model_files.weights import State, load_model, load_weights
from engine.models import pretrained
from engine.recipe import image_transform, schema
from engine.store.cells import Export


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Export:
        return Export(state_of(self.recipe.line(context.recipe), context))


def state_of(line: Line, context: Context) -> State:
    """The state dict of a checkpoint as a model of the campaign.

    Raises ValueError, naming the line and the file, for another architecture or preprocessing,
    other classes or another order of them, and a checkpoint without a head.
    """
    model, classes = context.recipe.model, context.sets.classes
    check_description(line, context)
    weight, bias = models.head_names(model)
    state = load_model(line.file)
    is_clip = model.arch.startswith("open_clip:")
    source, texts = "file", None
    if weight not in state and line.head is None and is_clip:
        source, texts = "open_clip", context.sets.class_texts
    elif weight not in state and line.head is None:
        raise ValueError(
            f"{line.name}: {line.file} has no {weight}: name a file of the head in the column head"
        )
    weights = dataclasses.replace(
        model.weights, source=source, path=str(line.file), match="name", sha256="", package=""
    )
    made = dataclasses.replace(model, weights=weights, head=schema.HeadRecipe())
    try:
        state = pretrained.fetch(made, cache_folder(), texts).state_dict()
    except ValueError as error:
        raise ValueError(f"{line.name}: {error}") from error
    if line.head is not None:
        of_file = {name.rpartition(".")[2]: t for name, t in load_weights(line.head).items()}
        if "weight" not in of_file or of_file["weight"].shape[1:] != state[weight].shape[1:]:
            raise ValueError(
                f"{line.name}: {line.head} has no `weight` of [{len(classes)}, "
                f"{state[weight].shape[1]}]"
            )
        head = of_file["weight"].to(state[weight])
        state |= {weight: head, bias: of_file.get("bias", head.new_zeros(len(head)))}
    if (outputs := len(state[weight])) != len(classes):
        raise ValueError(
            f"{line.name}: the head of {line.head or line.file} has {outputs} outputs, but "
            f"{context.recipe.dataset.name} has {len(classes)} classes"
        )
    return state


def check_description(line: Line, context: Context) -> None:
    """Raise ValueError if a file beside a checkpoint describes another model than the campaign's,
    or other classes."""
    described = describe_checkpoint(line.file)
    if described is None:
        return
    ours = image_transform.description(context.recipe.model)
    for key, value in described.model.items():
        if key in ours and _plain(ours[key]) != _plain(value):
            raise ValueError(
                f"{line.name}: {described.source} says {key} {value}, but the campaign's model has "
                f"{ours[key]}: set model.{key} to it, or leave the checkpoint out"
            )
    classes = tuple(context.sets.classes)
    if described.classes and described.classes != classes:
        pairs = zip(described.classes, classes, strict=False)
        shorter = min(len(described.classes), len(classes))
        first = next((k for k, (a, b) in enumerate(pairs) if a != b), shorter)
        raise ValueError(
            f"{line.name}: {described.source} names {len(described.classes)} classes, "
            f"{context.recipe.dataset.name} has {len(classes)}; output {first} is the first that "
            "differs"
        )


def _plain(value: object) -> object:
    """A value of JSON, in which lists and tuples are equal."""
    return tuple(value) if isinstance(value, list) else value
