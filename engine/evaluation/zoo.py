"""Users' own checkpoints, alone or interpolated, on their own sets: a bank without a campaign.

Checkpoints become artefacts of the store by their content and sets become packs, so that what was
evaluated once is found again, whatever the command that asks.
"""

from __future__ import annotations

import csv
import dataclasses
import io
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
from engine.machine.files import cache_folder, room_for, write_atomic
from engine.measures import bootstrap, metrics, predictions
from engine.measures.standings import rounded
from engine.models import checkpoints, clip, formats
from engine.recipe.schema import DatasetRecipe, ModelRecipe, Recipe
from engine.run import Run
from engine.store import tensors
from engine.store.artifacts import Store
from engine.store.cells import Cell, Mix
from loaders.pack import MANIFEST, Pack

log = logging.getLogger(__name__)
WIDTH = 100
MOST = 1000  # alphas of a range: each is a model in memory
CLIP = {"visual.proj", "logit_scale"}  # tensors that tell an open_clip checkpoint
HEADS = ("model", "alpha", "set", "n", "accuracy", "low", "high", "mask", "classes")


@dataclass(frozen=True)
class Row:
    """A model's top-1 accuracy in percent on a set of n images; alpha where it is interpolated.

    low, high: its 95% interval over source images (the population: `bootstrap`), if asked for.
    `classes`: how many of the head's could be an answer; mask: `none`, or `present` where they are
    those of the set.
    """

    model: str
    alpha: float | None
    set: str
    n: int
    accuracy: float
    low: float | None = None
    high: float | None = None
    error: float = 0.0  # Monte-Carlo standard error of the interval's ends
    mask: str = "none"
    classes: int = 0


def resolve(arch: str, overrides: Sequence[str]) -> Recipe:
    """The recipe that stands behind an evaluation; the image size is the architecture's own.

    `arch`: timm's name, or `open_clip:` and open_clip's. Raises RecipeError for an unknown
    architecture (the nearest is shown), key or value.
    """
    size = models.data_config(ModelRecipe(name=arch, arch=arch))["input_size"][-1]
    words = [f"model.arch={arch}", f"model.image_size={size}", "dataset.sets=[]"]
    words.append(f"threads={torch.get_num_threads()}")
    if arch.startswith(clip.PREFIX):
        words.append(f"model.weights.clip={arch.removeprefix(clip.PREFIX)}")
    return recipe.of_sections("file", "folder", [*words, *overrides, "dataset.holdout=0"])


def named(words: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Sets by name, of words FOLDER or NAME=FOLDER, and the recipe's `key=value` words among them.

    Raises ValueError for two sets of one name, and for a name that cannot be part of a path.
    """
    keys = {field.name for field in dataclasses.fields(Recipe)}
    places: dict[str, Path] = {}
    settings = []
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():
            name, folder = Path(word).resolve().name, word
        elif name.partition(".")[0] in keys or ("." in name and not Path(folder).exists()):
            settings.append(word)
            continue
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{word}: {name!r} cannot name a set; use one without '/' or a dot")
        if name in places:
            raise ValueError(
                f"two sets of one name, {places[name]} and {folder}: name one of them otherwise, "
                f"as in --sets NAME={folder}"
            )
        places[name] = Path(folder)
    return places, settings


def evaluated(
    wanted: Recipe,
    files: Sequence[Path],
    sets: Mapping[str, Path],
    device: torch.device,
    *,
    classes: Sequence[str] | None = None,
    alphas: Sequence[float] | None = None,
    mask: str = "none",
    intervals: bool = False,
) -> list[Row]:
    """Accuracy of every model on every set; with alphas, of (1 - alpha) first + alpha second.

    `sets`: by name, folders with <class>/<image>, or packs; their classes are found among the
    head's by name. `classes`: the head's in order, which nobody but ImageNet-1K's can leave out.
    mask: as of `Sets`.

    Raises ValueError, naming the file or folder, for checkpoints of another architecture, without a
    head or with other classes, sets that changed since they were packed or have classes that the
    head lacks, and class lists that do not fit.
    """
    if alphas is not None and len(files) != 2:
        raise ValueError(f"alphas interpolate between exactly 2 models, not {len(files)}")
    store = Store(Path(wanted.runs) / "store")
    cells = {file: cell_of(wanted.model, store, file) for file in files}
    same = {cell.name: file for file, cell in cells.items()}
    if len(same) < len(files):
        raise ValueError(f"two of {', '.join(map(str, files))} hold the same weights")
    head = _head(_outputs(wanted.model, cells), classes, files)
    packs = {name: pack_at(wanted, place) for name, place in sets.items()}
    opened = Sets(wanted, device, cache_folder(), packs, head, mask)
    check(opened, packs)
    run = Run(wanted, device, opened, store, next(iter(cells.values())), shares_features=False)
    bank = _bank([cell.name for cell in cells.values()], list(map(str, files)), alphas)
    rows = []
    for name in packs:
        passes.evaluate(run, [mix for _, _, mix in bank], [name], "all")
        rows += _rows(run, bank, name, intervals)
        opened.release(name)
    return rows


def check(sets: Sets, packs: Mapping[str, Pack]) -> None:
    """Find every set's classes in the head, before any set is evaluated.

    Raises ValueError for what the head lacks; says where published accuracies have a mask.
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
    """Which of the head's classes can be an answer on a set, in a word, and how many they are."""
    labelled = sets[name]
    if labelled.mask is None:
        return "none", len(sets.classes)
    return labelled.mask_rule, int(labelled.mask.sum())


def parse_alphas(text: str) -> list[float]:
    """`0:1:0.1` (both ends included) or `0,0.5,1`, each once.

    Raises ValueError for anything else, and for a range of more than `MOST`.
    """
    separator = ":" if ":" in text else ","
    try:
        numbers = [float(word) for word in text.split(separator)]
        if not np.isfinite(numbers).all():
            raise ValueError
        if separator == ",":
            return list(dict.fromkeys(numbers))
        start, stop, step = numbers
        if step <= 0 or stop < start:
            raise ValueError
        steps = int((stop - start) / step + 1e-9)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"alphas {text!r}: write START:STOP:STEP or a,b,c") from error
    if steps >= MOST:
        raise ValueError(f"alphas {text!r} are {steps + 1} models; at most {MOST} are possible")
    return [round(start + number * step, 10) for number in range(steps + 1)]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The rows with six decimals, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for row in rows:
        alpha = "" if row.alpha is None else f"{row.alpha:.10g}"
        ends = ["" if end is None else rounded(end, row.error, 6) for end in (row.low, row.high)]
        accuracy = f"{row.accuracy:.6f}"
        writer.writerow([row.model, alpha, row.set, row.n, accuracy, *ends, row.mask, row.classes])
    with room_for(path):
        write_atomic(path, text.getvalue().encode())


def table(rows: Sequence[Row]) -> str:
    """A line a model, a column a set, at most 100 columns wide: further sets stand below.

    `classes` are those that could be an answer. Beside an accuracy stands half the width of its
    interval, where it has one.
    """
    sets = list(dict.fromkeys(row.set for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        model = row.model.removesuffix(f"/{tensors.WEIGHTS}")  # of a cell, named by its folder
        label = model if row.alpha is None else f"{row.alpha:.10g}"
        unsure = ""
        if row.low is not None and row.high is not None:
            unsure = f" ±{rounded((row.high - row.low) / 2, row.error, 2)}"
        lines.setdefault(label, {})[row.set] = f"{row.accuracy:.2f}{unsure}"
    counts = {row.set: row.n for row in rows}
    classes = {row.set: row.classes for row in rows}
    first = "model" if rows[0].alpha is None else "alpha"
    margin = min(40, max(len(word) for word in (first, "classes", *lines)))
    longest = max(len(cell) for cells in lines.values() for cell in cells.values())
    width = min(24, max(8, longest, *map(len, sets)))
    per_block = (WIDTH - margin) // (width + 2)
    blocks = []
    for some in (sets[i : i + per_block] for i in range(0, len(sets), per_block)):
        drawn = [(first, [name[:width] for name in some])]
        drawn.append(("images", [f"{counts[name]:,}" for name in some]))
        drawn.append(("classes", [f"{classes[name]:,}" for name in some]))
        drawn += [(label, [found[name] for name in some]) for label, found in lines.items()]
        blocks.append(
            "\n".join(
                f"{label[-margin:]:<{margin}}" + "".join(f"  {cell:>{width}}" for cell in cells)
                for label, cells in drawn
            )
        )
    return "\n\n".join(blocks)


def cell_of(model: ModelRecipe, store: Store, file: Path) -> Cell:
    """A checkpoint as an artefact, checked to bring a head, or the text tower that makes one.

    The input prompt of a visual-prompt cell belongs to it.
    """
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")

    def made() -> Cell:
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
        described = dataclasses.replace(model, weights=weights)
        prompt = descriptions.prompt_of(file)
        if prompt is not None:
            log.warning(
                "%s is evaluated with its input prompt %s, which timm does not know: %s alone, as "
                "timm loads it, is another model",
                file.parent,
                prompt.name,
                file.name,
            )
        return Cell(checkpoints.backbone(described, store, cache_folder(), 0, prompt))

    return ranks.first(made)


def pack_at(wanted: Recipe, place: Path) -> Pack:
    """The pack at a place, or that of a folder with <class>/<image>, for a recipe's model."""
    if (place / MANIFEST).is_file():
        return Pack.open(place, transform_spec=models.transform(wanted.model).spec)
    place = place.resolve()
    dataset = DatasetRecipe(
        name="folder",
        root=str(place.parent),
        sets=[],
        holdout=0,
        pack_format=wanted.dataset.pack_format,
        undecodable=wanted.dataset.undecodable,
    )
    own = dataclasses.replace(wanted, dataset=dataset)
    return ranks.first(lambda: pack_of(own, place.name, cache_folder()))


def _outputs(model: ModelRecipe, cells: Mapping[Path, Cell]) -> int:
    """Classes of the models' heads, which must have equally many."""
    weight, _ = models.head_names_of(model)
    found = {file: cell.shape(weight)[0] for file, cell in cells.items()}
    (first, outputs), *others = found.items()
    for file, other in others:
        if other != outputs:
            raise ValueError(
                f"{file} has {other} classes, {first} has {outputs}: evaluate them apart"
            )
    return outputs


def _head(outputs: int, classes: Sequence[str] | None, files: Sequence[Path]) -> tuple[str, ...]:
    """The head's classes in order: those that are told, or ImageNet-1K's for as many outputs."""
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
        f"nothing says which class each of the {outputs} outputs of {files[0]} is: write the names "
        "in the head's order, a line each, and give them by --classes FILE. torchvision and timm "
        "number the folders of a training set in sorted order: `ls FOLDER | LC_ALL=C sort > FILE`; "
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
) -> list[Row]:
    """What the store says; it checks that all models saw the same images."""
    seen: predictions.Bank[int] = predictions.Bank()
    mask, classes = answers(run.sets, name)
    rows = []
    for number, (model, alpha, mix) in enumerate(bank):
        path = passes.predicted(run, mix, name, "all")
        try:
            found = seen.add(number, path)
        except ValueError as error:
            at = "" if alpha is None else f" at alpha {alpha:.10g}"
            raise ValueError(f"{model}{at} on {name}: {error}") from error
        seen_by = (model, alpha, name, len(found.top1), found.accuracy)
        rows.append(Row(*seen_by, mask=mask, classes=classes))
    if not intervals:
        return rows
    sums = np.stack([seen.sums(number, [0]) for number in range(len(rows))], axis=-1)
    draws = metrics.settled_draws({name: seen}, {name: sums})
    return [
        dataclasses.replace(row, **bootstrap.ends(samples)._asdict())
        for row, samples in zip(rows, draws.T, strict=True)
    ]
