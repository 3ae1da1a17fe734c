"""Users' checkpoints, alone or interpolated, evaluated on users' sets without a campaign.

A checkpoint becomes an artefact of the store, named by its content, and a set becomes a pack, so
every command finds the predictions that an earlier command made.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine import models, recipe
from engine.data import descriptions, imagenet
from engine.data.packs import pack_of
from engine.data.sets import Sets, names_in_head, published_among_its_classes
from engine.evaluation import passes
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.measures import bootstrap, predictions
from engine.models import checkpoints, clip, formats
from engine.recipe.schema import DatasetRecipe, ModelRecipe, Recipe
from engine.run import Run
from engine.store.artifacts import Store
from engine.store.cells import Cell, Mix
from loaders.pack import MANIFEST, Pack

log = logging.getLogger(__name__)
CLIP = {"visual.proj", "logit_scale"}  # tensors that only open_clip's checkpoints have


@dataclass(frozen=True)
class ModelAccuracy:
    """A model's top-1 accuracy in percent on a set of n images; alpha where it is interpolated.

    low, high: the optional 95% interval over source images (the population: `bootstrap`). classes:
    how many of the head's classes are possible answers; mask: `none`, or `present` where only the
    set's classes are.
    """

    model: str
    alpha: float | None
    set: str
    n: int
    accuracy: float
    low: float | None = None
    high: float | None = None
    mask: str = "none"
    classes: int = 0


def resolve(arch: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of an evaluation; the default image size is the architecture's.

    `arch`: timm's name, or `open_clip:` and open_clip's. Raises RecipeError for an unknown
    architecture (the nearest is shown), key or value.
    """
    size = models.data_config(ModelRecipe(name=arch, arch=arch))["input_size"][-1]
    words = [f"model.arch={arch}", f"model.image_size={size}", "dataset.sets=[]"]
    words.append(f"threads={torch.get_num_threads()}")
    if arch.startswith(clip.PREFIX):
        words.append(f"model.weights.clip={arch.removeprefix(clip.PREFIX)}")
    return recipe.of_sections("file", "folder", [*words, *overrides, "dataset.holdout=0"])


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
) -> list[ModelAccuracy]:
    """Accuracy of every model on every set; with alphas, of (1 - alpha) first + alpha second.

    `sets`: by name, folders with <class>/<image>, or packs; their classes are found among the
    head's by name. `classes`: the head's in order; None for ImageNet-1K's. mask: as of `Sets`.

    Raises ValueError, naming the file or folder, for checkpoints of another architecture, without a
    head or with other classes, sets that changed since they were packed or have classes that the
    head lacks, and class lists that do not fit.
    """
    if alphas is not None and len(files) != 2:
        raise ValueError(f"alphas interpolate between exactly 2 models, not {len(files)}")
    store = Store(Path(resolved.runs) / "store")
    cells = {file: cell_of(resolved.model, store, file) for file in files}
    if len({cell.name for cell in cells.values()}) < len(files):
        raise ValueError(f"two of {', '.join(map(str, files))} hold the same weights")
    head = _head(_outputs(resolved.model, cells), classes, files)
    packs = {name: pack_at(resolved, place) for name, place in sets.items()}
    opened = Sets(resolved, device, cache_folder(), packs, head, mask)
    check(opened, packs)
    run = Run(resolved, device, opened, store, next(iter(cells.values())), shares_features=False)
    bank = _bank([cell.name for cell in cells.values()], list(map(str, files)), alphas)
    rows = []
    for name in packs:
        passes.evaluate(run, [mix for _, _, mix in bank], [name], "all")
        rows += _rows(run, bank, name, intervals)
        opened.release(name)
    return rows


def check(sets: Sets, packs: Mapping[str, Pack]) -> None:
    """Find every set's classes in the head, before any set is evaluated.

    Raises ValueError for classes that the head lacks; logs where published accuracies have a mask.
    """
    for name, pack in packs.items():
        classes = names_in_head(pack.classes, sets.classes)
        unmasked = sets[name].mask_rule == "none"
        if unmasked and published_among_its_classes(pack, classes):
            log.info(
                "%s: any of the head's %d classes can be an answer; published accuracies are among "
                "the set's %d classes (--mask benchmark)",
                name,
                len(sets.classes),
                len(classes),
            )


def answers(sets: Sets, name: str) -> tuple[str, int]:
    """The mask rule of a set, `none` where it masks nothing, and the number of possible classes."""
    labelled = sets[name]
    if labelled.mask is None:
        return "none", len(sets.classes)
    return labelled.mask_rule, int(labelled.mask.sum())


def cell_of(model: ModelRecipe, store: Store, file: Path) -> Cell:
    """A checkpoint as an artefact, with the input prompt of a visual-prompt cell.

    Raises ValueError for a checkpoint without a head and without a text tower that makes a head.
    """
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")

    def make() -> Cell:
        names, (weight, _) = formats.names(file), models.head_names_of(model)
        source = "file"
        if weight not in names and model.weights.match == "names":
            if not model.arch.startswith(clip.PREFIX):
                hint = "; is it open_clip's (--arch open_clip:NAME)?" if CLIP & names else ""
                raise ValueError(
                    f"{file} has no {weight}: it is of another architecture than {model.arch}, or "
                    f"has no head to evaluate{hint}"
                )
            source = "open_clip"
        weights = dataclasses.replace(model.weights, source=source, path=str(file))
        prompt = descriptions.prompt_of(file)
        if prompt is not None:
            log.warning(
                "%s is evaluated with its input prompt %s, which timm does not know: %s alone, as "
                "timm loads it, is another model",
                file.parent,
                prompt.name,
                file.name,
            )
        of_file = dataclasses.replace(model, weights=weights)
        return Cell(checkpoints.backbone(of_file, store, cache_folder(), 0, prompt))

    return ranks.first(make)


def pack_at(resolved: Recipe, place: Path) -> Pack:
    """The pack at a place, or that of a folder with <class>/<image>, for a recipe's model."""
    if (place / MANIFEST).is_file():
        return Pack.open(place, transform_spec=models.transform(resolved.model).spec)
    place = place.resolve()
    dataset = DatasetRecipe(
        name="folder",
        root=str(place.parent),
        sets=[],
        holdout=0,
        pack_format=resolved.dataset.pack_format,
        undecodable=resolved.dataset.undecodable,
    )
    of_folder = dataclasses.replace(resolved, dataset=dataset)
    return ranks.first(lambda: pack_of(of_folder, place.name, cache_folder()))


def _outputs(model: ModelRecipe, cells: Mapping[Path, Cell]) -> int:
    """The number of classes of the models' heads; ValueError where they differ."""
    weight, _ = models.head_names_of(model)
    counts = {file: cell.shape(weight)[0] for file, cell in cells.items()}
    first, outputs = next(iter(counts.items()))
    for file, count in counts.items():
        if count != outputs:
            raise ValueError(
                f"{file} has {count} classes, {first} has {outputs}: evaluate them apart"
            )
    return outputs


def _head(outputs: int, classes: Sequence[str] | None, files: Sequence[Path]) -> tuple[str, ...]:
    """The head's classes in order: as given, or ImageNet-1K's for as many outputs."""
    if classes is not None:
        if len(classes) != outputs or len(set(classes)) != outputs:
            raise ValueError(
                f"{len(set(classes))} classes are named, but the head of {files[0]} has {outputs} "
                "outputs"
            )
        return tuple(classes)
    if outputs == len(imagenet.wnids()):
        return imagenet.wnids()
    raise ValueError(
        f"no file says which class each of the {outputs} outputs of {files[0]} is: write the names "
        "in the head's order, a line each, and pass --classes FILE. torchvision and timm number "
        "the folders of a training set in sorted order: `ls FOLDER | LC_ALL=C sort > FILE`; "
        f"for folders named by the outputs' numbers: `seq 0 {outputs - 1} > FILE`"
    )


def _bank(
    names: Sequence[str], files: Sequence[str], alphas: Sequence[float] | None
) -> list[tuple[str, float | None, Mix]]:
    if alphas is None:
        return [(file, None, {name: 1.0}) for name, file in zip(names, files, strict=True)]
    first, second = names
    return [(" + ".join(files), a, {first: 1 - a, second: a}) for a in alphas]


def _rows(
    run: Run, bank: Sequence[tuple[str, float | None, Mix]], name: str, intervals: bool
) -> list[ModelAccuracy]:
    """The models' rows on a set, from the store. Raises ValueError where their images differ."""
    on_set = predictions.SetPredictions()
    mask, classes = answers(run.sets, name)
    rows, right = [], []
    for model, alpha, mix in bank:
        path = passes.predicted(run, mix, name, "all")
        try:
            seen = on_set.add(path)
        except ValueError as error:
            at = "" if alpha is None else f" at alpha {alpha:.10g}"
            raise ValueError(f"{model}{at} on {name}: {error}") from error
        row = (model, alpha, name, len(seen.top1), seen.accuracy)
        rows.append(ModelAccuracy(*row, mask=mask, classes=classes))
        right.append(on_set.by_source(seen.hit))
    if not intervals:
        return rows
    counts = bootstrap.counts(on_set.sources)
    ends = 100 * bootstrap.interval(bootstrap.means(counts, on_set.total, np.stack(right, axis=1)))
    return [
        dataclasses.replace(row, low=low, high=high)
        for row, (low, high) in zip(rows, ends.T.tolist(), strict=True)
    ]
