"""Evaluate users' checkpoints, alone or interpolated, on users' datasets.

A checkpoint becomes an artefact of the store, named after its content, and a dataset becomes a
pack, so commands reuse earlier predictions.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine import models
from engine.data import imagenet
from engine.data.kinds import folder
from engine.data.masks import outputs_of, to_head
from engine.data.packs import pack_of
from engine.data.sets import class_texts
from engine.errors import OtherRankError, RecipeError
from engine.evaluation import accuracies
from engine.evaluation.accuracies import EvaluatedModel, OnSet
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.model_files.architectures import open_clip_name, side_of
from engine.model_files.descriptions import (
    CELL,
    TIMM_CONFIG,
    Description,
    checkpoint_in,
    describe_checkpoint,
    prompt_beside,
    recipe_keys,
)
from engine.model_files.model_names import architecture
from engine.model_files.weights import VISUAL, load_model
from engine.models import pretrained
from engine.recipe import image_transform, overrides
from engine.recipe.overrides import Override
from engine.recipe.resolve import recipe_of_sections
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store.artifacts import STORE, Store
from engine.store.cells import Cell
from loaders.pack import MANIFEST, Pack

log = logging.getLogger(__name__)
KEYS = (  # keys that affect the evaluation of checkpoints, in addition to `model.KEY`
    *("runs", "loader", "device", "threads"),
    *("evaluate.batch_size", "evaluate.precision", "evaluate.compile"),
    *("dataset.pack_format", "dataset.undecodable", "dataset.background"),
    *("dataset.class_names", "dataset.templates"),
)


def resolve(arch: str, given: Sequence[Override]) -> Recipe:
    """The recipe of an evaluation; the default image size is the architecture's.

    arch: timm's name, or `open_clip:` and open_clip's. Raises RecipeError for an unknown
    architecture, key or value, and for a key without effect here.
    """
    config = image_transform.data_config(ModelRecipe(name=arch, arch=arch))
    size = side_of(arch, config["input_size"])
    defaults: dict[str, Any] = {"model.arch": arch, "model.image_size": size, "dataset.sets": []}
    defaults["threads"] = torch.get_num_threads()
    defaults["model.weights.clip"] = open_clip_name(arch)
    whole = overrides.of_mapping({"dataset.holdout": 0})
    before = overrides.of_mapping(defaults)
    resolved = recipe_of_sections("file", "folder", [*before, *given, *whole])
    for override in given:
        if override.key not in KEYS and not override.key.startswith("model."):
            raise RecipeError(
                f"{override.text!r} has no effect on the evaluation of checkpoints: use model.KEY, "
                f"{', '.join(KEYS)}"
            )
    return resolved


def described(
    places: Sequence[Path],
    arch: str | None,
    given: Sequence[Override],
    classes: Sequence[str] | None = None,
) -> tuple[Recipe, list[Path], Sequence[str] | None]:
    """The recipe of checkpoints, their files, and the head's classes if known.

    places: files, timm folders or cells. arch, classes: the user's, if no file next to the
    checkpoints has these. Raises ValueError as `describe_checkpoint`, `resolve`, `model_of` and
    `classes_of`.
    """
    files = [checkpoint_in(place) for place in places]
    of_name: dict[str, Any] = {}
    if arch is not None:
        arch, of_name = architecture(arch)
    beside = {file: describe_checkpoint(file, arch) for file in files}
    name, settings = model_of(beside, arch)
    resolved = resolve(name, [*overrides.of_mapping(of_name | settings), *given])
    return resolved, files, classes or classes_of(beside)


def model_of(
    descriptions: Mapping[Path, Description | None], arch: str | None
) -> tuple[str, dict[str, Any]]:
    """The common architecture of checkpoints, and the model's settings by recipe key.

    A checkpoint without a description is assumed to be the same model. Raises ValueError if
    descriptions or `arch` disagree, or the architecture is unknown.
    """
    model: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for description in filter(None, descriptions.values()):
        for key, value in description.model.items():
            if model.setdefault(key, value) != value:
                raise ValueError(
                    f"{sources[key]} says {key} {model[key]}, {description.source} says {value}: "
                    "give models that agree in this"
                )
            sources.setdefault(key, description.source)
    if arch is None and not model:
        raise ValueError(
            f"{next(iter(descriptions))} does not name its architecture, and there is neither a "
            f"{CELL} nor a {TIMM_CONFIG} next to it: name it with --arch"
        )
    known = model.get("arch", arch)
    if arch is not None and arch.partition(".")[0] != known.partition(".")[0]:
        raise ValueError(f"{sources['arch']} says that the model is {known}, not {arch}")
    return known, {f"model.{key}": value for key, value in recipe_keys(model).items()}


def classes_of(descriptions: Mapping[Path, Description | None]) -> tuple[str, ...] | None:
    """The common classes of the checkpoints' heads, or None if no description names them.

    A checkpoint may lack class names only if the others have ImageNet-1K's, whose order is
    standard. Raises ValueError if it lacks them otherwise, or if two checkpoints disagree.
    """
    named = {d.source: d.classes for d in descriptions.values() if d is not None and d.classes}
    if not named:
        return None
    source, classes = next(iter(named.items()))
    for file, names in named.items():
        if names != classes:
            raise ValueError(
                f"{source} and {file} have different classes, or another order: give models with "
                "the same head"
            )
    nameless = [file for file, d in descriptions.items() if d is None or not d.classes]
    if nameless and classes != imagenet.wnids():
        raise ValueError(
            f"no file names the classes of {nameless[0]}'s outputs: if they are those of the other "
            f"models, add --classes {source}"
        )
    return classes


def evaluate(
    resolved: Recipe,
    files: Sequence[Path],
    sets: Mapping[str, Path],
    device: torch.device,
    *,
    classes: Sequence[str] | None = None,
    alphas: Sequence[float] | None = None,
    mask: str = "none",
    intervals: bool = False,
    left_out: dict[Path, str] | None = None,
) -> list[OnSet]:
    """Accuracy of every model on every dataset; with alphas, of (1 - alpha) first + alpha second.

    sets: folders of <class>/<image>, or packs, by name; classes are matched with the head's by
    name. classes: the head's in order; None for ImageNet-1K's. A model of open_clip without a head
    gets its zero-shot head for them. mask: as in `Sets`. left_out: as in `cells_of`, without
    alphas.

    Raises ValueError, naming the file or folder, for checkpoints of another architecture, without a
    head or with other classes; for datasets that changed since they were packed or have classes
    that the head lacks; and for class lists of the wrong length.
    """
    if alphas is not None and len(files) != 2:
        raise ValueError(f"--alphas requires exactly 2 models, not {len(files)}")
    store = Store(Path(resolved.runs) / STORE, resolved.generation)
    packs = {name: pack_at(resolved, place) for name, place in sets.items()}
    if alphas is not None:
        left_out = None
    cells, head = cells_of(resolved, store, files, classes, packs.values(), left_out)
    names = {file: cell.name for file, cell in cells.items()}
    compared = [EvaluatedModel.named(str(file), {name: 1.0}) for file, name in names.items()]
    if alphas is not None:
        refuse_prompts(files, "leave out --alphas")
        (first, second), both = names.values(), " + ".join(map(str, names))
        compared = [EvaluatedModel.named(both, {first: 1 - a, second: a}, a) for a in alphas]
    return accuracies.evaluate(
        resolved,
        store,
        compared,
        packs,
        device,
        base=next(iter(cells.values())),
        classes=head,
        mask=mask,
        intervals=intervals,
        shares_features=False,
    )


def refuse_prompts(files: Sequence[Path], remedy: str) -> None:
    """Raise ValueError, naming the folder, if one of these models has an input prompt."""
    for file in files:
        if prompt_beside(file) is not None:
            raise ValueError(
                f"{file.parent} has an input prompt, which cannot be averaged: {remedy}"
            )


def cells_of(
    resolved: Recipe,
    store: Store,
    files: Sequence[Path],
    classes: Sequence[str] | None,
    packs: Iterable[Pack] = (),
    left_out: dict[Path, str] | None = None,
) -> tuple[dict[Path, Cell], tuple[str, ...]]:
    """Checkpoints as artefacts, by file, and the classes of their heads, in order.

    classes: as given by the user. packs: datasets whose classes the heads must have. left_out:
    where to write why files cannot be read or do not fit the architecture, while another can; None
    to raise the error. Raises ValueError as `cell_of` and `head_of`, for a missing file, and for
    equal weights. All but the equality is checked before a text tower makes a head, which takes
    long.
    """
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"checkpoint {missing[0]} does not exist")
    made: dict[Path, Cell] = {}
    headless, faults = [], dict[Path, Exception]()
    for file in files:
        try:
            if _lacks_head(resolved.model, file):
                headless.append(file)
            else:
                made[file] = cell_of(resolved, store, file)
        except (ValueError, OSError, OtherRankError) as error:
            faults[file] = error
            if left_out is None:
                raise
            log.warning("%s; it is left out", error)
    if faults and not (made or headless):
        raise next(iter(faults.values()))
    head = head_of(resolved.model, made, classes)
    for pack in packs:
        to_head(pack, outputs_of(pack, head), head, "present")
    made |= {file: cell_of(resolved, store, file, head) for file in headless}
    if len({cell.name for cell in made.values()}) < len(made):
        raise ValueError(f"two of {', '.join(map(str, made))} contain the same weights")
    if left_out is not None:
        left_out |= {file: str(error) for file, error in faults.items()}
    return {file: made[file] for file in files if file in made}, head


def head_of(
    model: ModelRecipe, cells: Mapping[Path, Cell], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes of the models' heads, in order: as given, or ImageNet-1K's for 1000 outputs.

    cells: those with a head in their file.
    """
    if classes is not None and len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise ValueError(f"--classes names {', '.join(twice[:3])} twice")
    if not cells:
        return tuple(classes or imagenet.wnids())
    weight, _ = models.head_names(model)
    counts = {file: cell.shape(weight)[0] for file, cell in cells.items()}
    first, outputs = next(iter(counts.items()))
    for file, count in counts.items():
        if count != outputs:
            raise ValueError(
                f"{file} has {count} classes, {first} has {outputs}: give models with the same head"
            )
    if classes is None and outputs == len(imagenet.wnids()):
        return imagenet.wnids()
    if classes is None:
        raise ValueError(
            f"no file names the classes of {first}'s {outputs} outputs: write the names in the "
            "head's order, one per line, and pass --classes FILE. torchvision and timm sort the "
            "folders of a training set: `ls FOLDER | LC_ALL=C sort > FILE`. For folders named "
            f"after the outputs' numbers: `seq 0 {outputs - 1} > FILE`"
        )
    if len(classes) != outputs:
        raise ValueError(
            f"--classes has {len(classes)} names, but the head of {first} has {outputs} outputs"
        )
    return tuple(classes)


def cell_of(
    resolved: Recipe, store: Store, file: Path, classes: Sequence[str] | None = None
) -> Cell:
    """A checkpoint as an artefact, with the input prompt of a visual-prompt cell.

    classes: those of the head that the text tower makes, or None if the file has a head.
    """
    model, source = resolved.model, "file" if classes is None else "open_clip"
    weights = dataclasses.replace(model.weights, source=source, path=str(file))
    of_file = dataclasses.replace(model, weights=weights)

    def make() -> Cell:
        texts = None if classes is None else class_texts(resolved, classes)
        prompt = prompt_beside(file)
        return Cell(pretrained.backbone(of_file, store, cache_folder(), 0, prompt, texts))

    return ranks.first(make)


def _lacks_head(model: ModelRecipe, file: Path) -> bool:
    """Whether a checkpoint's head must come from its text tower.

    Raises ValueError for a checkpoint without a head and without a text tower to make one.
    """
    names, (weight, _) = load_model(file).keys(), models.head_names(model)
    if weight in names or model.weights.match == "order":
        return False
    if open_clip_name(model.arch):
        return True
    if any(name.startswith(VISUAL) for name in names):
        raise ValueError(f"{file} has open_clip's names: give --arch open_clip:NAME")
    with torch.device("meta"):
        net = models.create(model, 2)
    models.take_head(net, model)
    if missing := [name for name in net.state_dict() if name not in names]:
        raise ValueError(
            f"{file} is not a {model.arch}, of which it lacks {len(missing)} tensors, such as "
            f"{missing[0]}: name its architecture with --arch"
        )
    raise ValueError(
        f"{file} is a {model.arch} without a head ({weight} is missing), so it predicts no "
        "classes: train a head, or give the file of a classifier"
    )


def pack_at(resolved: Recipe, place: Path) -> Pack:
    """The pack at a path, or the pack of a folder of <class>/<image>, for a recipe's model."""
    if (place / MANIFEST).is_file():
        return Pack.open(place, transform_spec=image_transform.transform(resolved.model).spec)
    place = place.absolute()
    dataset = folder.Recipe(
        name="folder",
        root=str(place.parent),
        sets=[],
        holdout=0,
        pack_format=resolved.dataset.pack_format,
        undecodable=resolved.dataset.undecodable,
        background=resolved.dataset.background,
    )
    of_folder = dataclasses.replace(resolved, dataset=dataset)
    return ranks.first(lambda: pack_of(of_folder, place.name, cache_folder()))
