"""The sets of a benchmark, packed for one model and seen through its head.

A pack holds pixels and the set's own labels; what the engine needs on top is which outputs of the
head those labels mean, which outputs take part at all, and which images are held out.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import models, ranks
from engine.artifacts import digest
from engine.schema import DatasetRecipe, ModelRecipe, Recipe
from loaders import emoji, folders
from loaders.batch import Source
from loaders.encode import encode
from loaders.pack import Item, Pack
from loaders.stream import open_source

PACK_FORMAT = 1
PARALLEL_FROM = 5000  # images


@dataclass(frozen=True)
class Content:
    """What goes into a pack: its samples, their classes and how an image is opened."""

    items: Sequence[Item]
    classes: Sequence[str]
    open_image: Callable[[Any], Any]
    fingerprint: str


@dataclass(frozen=True)
class LabelledSet:
    """A pack with its labels in the head's order (int64 [N]), class mask (bool [C]) and split."""

    name: str
    pack: Pack
    labels: torch.Tensor
    mask: torch.Tensor | None
    train: np.ndarray
    holdout: np.ndarray

    def split(self, name: str) -> np.ndarray:
        """Positions (int64) of `all`, `train` or `holdout`; all where nothing is held out."""
        everything = np.arange(len(self.pack))
        if name == "all" or not len(self.holdout):
            return everything
        return {"train": self.train, "holdout": self.holdout}[name]


class Sets:
    """Opens the sets of one recipe, encoding a pack when there is none yet."""

    def __init__(self, recipe: Recipe, device: torch.device, cache: Path) -> None:
        self.recipe = recipe
        self.device = device
        self.cache = cache
        self._open: dict[str, LabelledSet] = {}
        self._sources: dict[str, Source] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The head's classes: those of the upstream set."""
        return self[self.recipe.dataset.upstream].pack.classes

    def __getitem__(self, name: str) -> LabelledSet:
        if name not in self._open:
            pack = ranks.first(lambda: pack_of(self.recipe, name, self.cache))
            dataset = self.recipe.dataset
            head = pack.classes if name == dataset.upstream else self.classes
            labels, mask = to_head(pack, head)
            train, holdout = split(pack.labels, dataset.holdout, dataset.seed)
            self._open[name] = LabelledSet(name, pack, labels, mask, train, holdout)
        return self._open[name]

    def source(self, name: str) -> Source:
        """Where the images of a set come from: device memory, or a stream."""
        if name not in self._sources:
            self._sources[name] = open_source(
                self[name].pack,
                self.device,
                mode=self.recipe.source,  # type: ignore[arg-type]  # checked with the recipe
            )
        return self._sources[name]

    def release(self, name: str) -> None:
        """Give the device memory of a set back."""
        self._sources.pop(name, None)


def pack_of(recipe: Recipe, name: str, cache: Path) -> Pack:
    """The pack of a set for a recipe's model; encoded now if it is not there."""
    dataset, model = recipe.dataset, recipe.model
    transform = models.transform(model)
    folder = pack_folder(Path(recipe.runs), dataset, model, name)
    if (folder / "manifest.json").is_file():
        pack = Pack.open(folder, transform_spec=transform.spec)
        _refuse_changed(pack, Path(dataset.root) / name if dataset.kind == "folder" else None)
        return pack
    content = CONTENT[dataset.kind](dataset, name, cache)
    return encode(
        folder,
        name=name,
        items=content.items,
        open_image=content.open_image,
        transform=transform,
        transform_spec=transform.spec,
        classes=content.classes,
        source_fingerprint=content.fingerprint,
        format=dataset.pack_format,  # type: ignore[arg-type]  # checked with the recipe
        # Each worker imports torch and timm first, which only a large set pays back.
        workers=(os.cpu_count() or 1) if len(content.items) > PARALLEL_FROM else 1,
    )


def pack_folder(runs: Path, dataset: DatasetRecipe, model: ModelRecipe, name: str) -> Path:
    """`runs/packs/<set>-<hash>`: models with the same transform share a pack."""
    key = dataclasses.asdict(dataset)
    for unrelated in ("name", "sets", "holdout"):
        del key[unrelated]
    key |= {"set": name, "transform": models.transform(model).spec, "format": PACK_FORMAT}
    return runs / "packs" / f"{name}-{digest(key)}"


def to_head(pack: Pack, head: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels in the head's order, and the mask of classes that a smaller set leaves.

    Raises ValueError naming the classes of the set that the head does not know.
    """
    position = {name: i for i, name in enumerate(head)}
    unknown = [name for name in pack.classes if name not in position]
    if unknown:
        raise ValueError(
            f"{pack.name} has {len(unknown)} classes that the model's head lacks, such as "
            f"{', '.join(unknown[:3])}; give it the classes of the upstream set"
        )
    numbers = torch.tensor([position[name] for name in pack.classes], dtype=torch.int64)
    labels = numbers[torch.from_numpy(np.array(pack.labels))]
    if len(numbers) == len(head):
        return labels, None
    mask = torch.zeros(len(head), dtype=torch.bool)
    mask[numbers] = True
    return labels, mask


def split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeded split, stratified by class: positions to train on, positions held out (sorted).

    Of a class with n images round(share * n) are held out, but never all of them.
    """
    held = []
    for label in np.unique(labels) if share else ():
        places = np.flatnonzero(labels == label)
        mixed = np.random.default_rng([seed, int(label)]).permutation(places)
        held.append(mixed[: min(round(share * len(places)), len(places) - 1)])
    holdout = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), holdout), holdout


def _emoji(dataset: DatasetRecipe, name: str, cache: Path) -> Content:
    styles = emoji.UPSTREAM if name == dataset.upstream else (name,)
    concepts = emoji.fetch(cache).choose(dataset.classes, dataset.seed)
    rendering = (dataset.renderings, dataset.seed, dataset.source_px)
    return Content(
        emoji.items(cache, styles, concepts, *rendering),
        [concept.name for concept in concepts],
        emoji.open_image,
        emoji.fingerprint(styles, concepts, *rendering),
    )


def _folder(dataset: DatasetRecipe, name: str, cache: Path) -> Content:
    root = Path(dataset.root) / name
    items, classes = folders.items(root)
    return Content(items, classes, folders.open_image, folders.fingerprint(root))


def _refuse_changed(pack: Pack, root: Path | None) -> None:
    """Raise ValueError where the images a pack was made of are there, but no longer the same."""
    if root is None or not root.is_dir():
        return
    if folders.fingerprint(root) != pack.manifest["source_fingerprint"]:
        raise ValueError(
            f"the images in {root} changed since {pack.folder} was made of them; delete that "
            "folder to encode them again, or use another runs=FOLDER"
        )


CONTENT: dict[str, Callable[[DatasetRecipe, str, Path], Content]] = {
    "emoji": _emoji,
    "folder": _folder,
}
