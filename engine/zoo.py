"""Users' own checkpoints, alone or interpolated, on their own sets: a bank without a campaign.

Checkpoints become artefacts of the store by their content and sets become packs, so that what was
evaluated once is found again, whatever the command that asks.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine import clip, evaluate, models, recipe
from engine.artifacts import room_for, write_atomic
from engine.cells import Cell
from engine.context import Context, Request, cache_folder
from engine.data import imagenet
from engine.data.sets import Sets, pack_of
from engine.machine import ranks
from engine.measures import bootstrap, predictions
from engine.measures.metrics import RESAMPLES
from engine.merge import Mix
from engine.schema import ModelRecipe, Recipe
from engine.weights import checkpoints
from loaders.pack import MANIFEST, Pack

WIDTH = 100
MOST = 1000  # alphas of a range: each is a model in memory
CLIP = {"visual.proj", "logit_scale"}  # tensors that tell an open_clip checkpoint
HEADS = ("model", "alpha", "set", "n", "accuracy", "low", "high")


@dataclass(frozen=True)
class Row:
    """A model's top-1 accuracy in percent on a set of n images; alpha where it is interpolated.

    low, high: its 95% interval over source images (the population: `bootstrap`), if asked for.
    """

    model: str
    alpha: float | None
    set: str
    n: int
    accuracy: float
    low: float | None = None
    high: float | None = None


class OwnContext(Context):
    """Checkpoints that have no base model and no siblings."""

    keeps_features = False


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


def published(file: Path) -> tuple[str, list[str]]:
    """Architecture of a checkpoint, and the words that make its images, by the `config.json` that
    timm writes beside weights. Raises ValueError where there is none."""
    path = file.parent / "config.json"
    try:
        told = json.loads(path.read_text())
        arch, own = told["architecture"], told["pretrained_cfg"]
        words = [f"model.image_size={own['input_size'][-1]}", f"model.crop={own['crop_pct']}"]
        words += [f"model.{key}={own[key]}" for key in ("interpolation", "mean", "std")]
        words.append(f"model.crop_mode={own.get('crop_mode', 'center')}")  # older files lack it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} says nothing of its architecture, and {path} is no config.json of timm's "
            f"({error!r}): name it by --arch"
        ) from error
    return arch, words


def evaluated(
    wanted: Recipe,
    files: Sequence[Path],
    sets: Sequence[Path],
    device: torch.device,
    *,
    alphas: Sequence[float] | None = None,
    classes: Path | None = None,
    intervals: bool = False,
) -> list[Row]:
    """Accuracy of every model on every set; with alphas, of (1 - alpha) first + alpha second.

    `sets`: folders <set>/<class>/<image>, or packs. `classes`: a file of the head's class names,
    a line each; else they are those of a set with as many, or ImageNet-1K's.

    Raises ValueError, naming the file or folder, for checkpoints of another architecture, without a
    head or with other classes, sets that changed since they were packed, and class lists that do
    not fit.
    """
    if alphas is not None and len(files) != 2:
        raise ValueError(f"alphas interpolate between exactly 2 models, not {len(files)}")
    context = OwnContext(Request(""), wanted, device)
    cells = {file: cell_of(context, file) for file in files}
    same = {cell.name: file for file, cell in cells.items()}
    if len(same) < len(files):
        raise ValueError(f"two of {', '.join(map(str, files))} hold the same weights")
    outputs = _outputs(context, cells)
    packs = {place.resolve().name: _pack(wanted, place) for place in sets}
    if len(packs) < len(sets):
        raise ValueError(f"two sets of one name among {', '.join(map(str, sets))}")
    head = _head(outputs, packs, classes)
    context.sets = Sets(wanted, device, cache_folder(), packs, head)
    bank = _bank([cell.name for cell in cells.values()], list(map(str, files)), alphas)
    rows = []
    for name in packs:
        evaluate.evaluate(context, [mix for _, _, mix in bank], [name], "all")
        rows += _rows(context, bank, name, intervals)
        context.sets.release(name)
    return rows


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
        ends = ["" if end is None else f"{end:.6f}" for end in (row.low, row.high)]
        writer.writerow([row.model, alpha, row.set, row.n, f"{row.accuracy:.6f}", *ends])
    with room_for(path):
        write_atomic(path, text.getvalue().encode())


def table(rows: Sequence[Row]) -> str:
    """A line a model, a column a set, at most 100 columns wide: further sets stand below.

    Beside an accuracy stands half the width of its interval, where it has one.
    """
    sets = list(dict.fromkeys(row.set for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        label = row.model if row.alpha is None else f"{row.alpha:.10g}"
        unsure = "" if row.low is None or row.high is None else f" ±{(row.high - row.low) / 2:.2f}"
        lines.setdefault(label, {})[row.set] = f"{row.accuracy:.2f}{unsure}"
    counts = {row.set: row.n for row in rows}
    first = "model" if rows[0].alpha is None else "alpha"
    margin = min(40, max(len(word) for word in (first, "images", *lines)))
    longest = max(len(cell) for cells in lines.values() for cell in cells.values())
    width = min(24, max(8, longest, *map(len, sets)))
    per_block = (WIDTH - margin) // (width + 2)
    blocks = []
    for some in (sets[i : i + per_block] for i in range(0, len(sets), per_block)):
        drawn = [(first, [name[:width] for name in some])]
        drawn.append(("images", [f"{counts[name]:,}" for name in some]))
        drawn += [(label, [found[name] for name in some]) for label, found in lines.items()]
        blocks.append(
            "\n".join(
                f"{label[-margin:]:<{margin}}" + "".join(f"  {cell:>{width}}" for cell in cells)
                for label, cells in drawn
            )
        )
    return "\n\n".join(blocks)


def cell_of(context: OwnContext, file: Path) -> Cell:
    """A checkpoint as an artefact, checked to bring a head, or the text tower that makes one."""
    model = context.recipe.model
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")

    def made() -> Cell:
        names, (weight, _) = checkpoints.names(file), models.head_names_of(model)
        source = "file"
        if weight not in names:
            if not model.arch.startswith(clip.PREFIX):
                hint = "; is it open_clip's (--arch open_clip:NAME)?" if CLIP & names else ""
                raise ValueError(
                    f"{file} has no {weight}: it is of another architecture than {model.arch}, or "
                    f"has no head to evaluate{hint}"
                )
            source = "open_clip"
        weights = dataclasses.replace(model.weights, source=source, path=str(file))
        own = dataclasses.replace(model, weights=weights)
        return Cell(checkpoints.backbone(own, context.store, cache_folder(), seed=0))

    return ranks.first(made)


def _outputs(context: OwnContext, cells: Mapping[Path, Cell]) -> int:
    """Classes of the models' heads, which must have equally many."""
    weight, _ = models.head_names_of(context.recipe.model)
    found = {file: cell.shape(weight)[0] for file, cell in cells.items()}
    (first, outputs), *others = found.items()
    for file, other in others:
        if other != outputs:
            raise ValueError(
                f"{file} has {other} classes, {first} has {outputs}: evaluate them apart"
            )
    return outputs


def _pack(wanted: Recipe, place: Path) -> Pack:
    if (place / MANIFEST).is_file():
        return Pack.open(place, transform_spec=models.transform(wanted.model).spec)
    place = place.resolve()
    dataset = dataclasses.replace(wanted.dataset, root=str(place.parent))
    own = dataclasses.replace(wanted, dataset=dataset)
    return ranks.first(lambda: pack_of(own, place.name, cache_folder()))


def _head(outputs: int, packs: Mapping[str, Pack], file: Path | None) -> tuple[str, ...]:
    """The head's classes in order; sets may have fewer.

    Folders that are all named by numbers are counted, as in ImageNetV2, where text has another
    order.
    """
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no list of class names: {error}") from error
        listed = tuple(line.strip() for line in lines if line.strip())
        if len(listed) != outputs or len(set(listed)) != outputs:
            raise ValueError(
                f"{file} lists {len(set(listed))} classes, but the models have {outputs} outputs"
            )
        return listed
    whole = {name: pack.classes for name, pack in packs.items() if len(pack.classes) == outputs}
    of_imagenet = outputs == len(imagenet.wnids())
    if whole:
        name, classes = next(iter(whole.items()))
        if all(one.isdecimal() for one in classes):
            return tuple(sorted(classes, key=int))
        if of_imagenet and classes != imagenet.wnids():
            raise ValueError(
                f"the models have {outputs} outputs, as for ImageNet-1K, but the classes of {name} "
                "are not its wnids; give their names in the head's order, a line each, by "
                "--classes FILE"
            )
        return classes
    if of_imagenet:
        return imagenet.wnids()
    found = ", ".join(f"{name} {len(pack.classes)}" for name, pack in packs.items())
    raise ValueError(
        f"the models have {outputs} outputs, but no set has as many classes ({found}); give their "
        "names in the head's order, a line each, by --classes FILE"
    )


def _bank(
    names: Sequence[str], files: Sequence[str], alphas: Sequence[float] | None
) -> list[tuple[str, float | None, Mix]]:
    if alphas is None:
        return [(file, None, {name: 1.0}) for name, file in zip(names, files, strict=True)]
    first, second = names
    return [(" + ".join(files), a, {first: 1 - a, second: a}) for a in alphas]


def _rows(
    context: OwnContext, bank: Sequence[tuple[str, float | None, Mix]], name: str, intervals: bool
) -> list[Row]:
    """What the store says; it checks that all models saw the same images."""
    seen: predictions.Bank[int] = predictions.Bank()
    rows = []
    for number, (model, alpha, mix) in enumerate(bank):
        path = evaluate.predicted(context, mix, name, "all")
        try:
            found = seen.add(number, path)
        except ValueError as error:
            at = "" if alpha is None else f" at alpha {alpha:.10g}"
            raise ValueError(f"{model}{at} on {name}: {error}") from error
        rows.append(Row(model, alpha, name, len(found.top1), found.accuracy))
    if not intervals:
        return rows
    sums = np.stack([seen.sums(number, [0]) for number in range(len(rows))], axis=-1)
    draws = bootstrap.means({name: seen}, {name: sums}, resamples=RESAMPLES, seed=0)[name]
    ends = [bootstrap.interval(100 * samples) for samples in draws.T]
    return [dataclasses.replace(r, low=a, high=b) for r, (a, b) in zip(rows, ends, strict=True)]
