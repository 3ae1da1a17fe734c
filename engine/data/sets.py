"""The datasets of a benchmark, with labels as outputs of a model's head.

A pack contains pixels and the dataset's labels. The engine also needs the head's outputs for these
labels, the outputs that are possible predictions, and the held-out images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch

from engine.data import imagenet, masks, splits
from engine.data.kinds import kind_of
from engine.data.packs import pack_of, to_train_on
from engine.did_you_mean import nearest
from engine.machine import ranks
from engine.measures.rows import UNION, trained_sets
from engine.models.clip import ClassTexts, imagenets_texts
from engine.recipe import kinds
from engine.recipe.schema import DatasetRecipe, Recipe
from engine.recipe.words import read_words
from loaders.batches import Source, open_source
from loaders.files.durable import short_digest
from loaders.pack import JoinedPack, Pack
from loaders.sampling import balanced

log = logging.getLogger(__name__)
MASKS = ("none", "present", "benchmark")
TEMPLATES = ("a photo of a {}.",)  # for other classes than ImageNet's


@dataclass(frozen=True)
class LabelledSet:
    """A pack with its labels as outputs of the head (int64 [N]), class mask (bool [C]) and split.

    members: outputs of each class, if classes have several (`grouping`). group: str [N], the part
    of the dataset that an image belongs to, if all parts have equal weight (IN-C). split_by: how
    copies of a source image stay together: `by source` within the dataset, `by hash of source` in
    all datasets, or empty if images are split one by one. mask_rule: `none` if other classes of the
    head are possible (wrong) predictions, otherwise `present`. class_reduction: how a class's
    outputs become its logit (`masks.grouped`). parts_key: what determines `group`. outputs_digest:
    of a file that says which outputs a class has; empty without one. parts: of a union, its
    datasets, in the order of their images. is_probe: whether its labels are indices of its own
    classes. split_column: of the published split, unless it is also one of the images' columns.
    """

    name: str
    pack: Pack
    labels: torch.Tensor
    mask: torch.Tensor | None
    train: np.ndarray
    holdout: np.ndarray
    members: torch.Tensor | None = None
    group: np.ndarray | None = None
    split_by: str = ""
    mask_rule: str = "present"
    class_reduction: str = "max"
    parts_key: dict[str, Any] = field(default_factory=dict)
    outputs_digest: str = ""
    parts: tuple[LabelledSet, ...] = ()
    is_probe: bool = False
    split_column: str = ""
    _thinned: dict[tuple[int, int], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # cached draws of `_at_most`, which take seconds for millions of images

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Further columns of the images by name, each str [N], such as their location. A column
        that only splits the images is none."""
        return {k: column for k, column in self.pack.columns.items() if k != self.split_column}

    def split(self, name: str) -> np.ndarray:
        """Positions (int64) of `all`, `train` or `holdout`; all if nothing is held out."""
        everything = np.arange(len(self.pack))
        if name == "all" or not len(self.holdout):
            return everything
        return {"train": self.train, "holdout": self.holdout}[name]

    def training(self, recipe: Recipe) -> np.ndarray:
        """Positions (int64, sorted) that a cell of the recipe trains on.

        They are the training split or, if it is larger than `dataset.train_images`, a balanced
        sample of it by the dataset's seed (of a union, for each of its datasets); then
        `dataset.shots` or `dataset.fraction` selects by the recipe's seed. Raises ValueError if no
        image is left, or if `dataset.holdout` holds out no image of a dataset, because evaluation
        would then use training images.
        """
        dataset = recipe.dataset
        for part in self.parts or (self,):
            if dataset.holdout and not len(part.holdout):
                raise ValueError(
                    f"dataset.holdout={dataset.holdout:g} holds out no image of {part.name}, which "
                    "models train on: add images to its classes, raise dataset.holdout (0.5 holds "
                    "out one of two), or set dataset.holdout=0 to evaluate models on training "
                    "images"
                )
            if not len(part.train):
                raise ValueError(
                    f"dataset.holdout={dataset.holdout:g} holds out all photos of {part.name}, "
                    "which models train on: lower it, or add photos"
                )
        positions = self._at_most(dataset.train_images, dataset.seed)
        labels = self.labels.numpy()[positions]
        if dataset.shots:
            return positions[splits.first_of_each_class(labels, dataset.shots, recipe.seed)]
        if dataset.fraction == 1:
            return positions
        part = splits.fraction_of_each_class(labels, dataset.fraction, recipe.seed)
        if not len(part):
            raise ValueError(
                f"dataset.fraction={dataset.fraction:g} leaves none of the {len(positions)} "
                f"training images of {self.name}: give at least {1 / len(positions):.2g}"
            )
        return positions[part]

    def _at_most(self, images: int, seed: int) -> np.ndarray:
        """Positions of the training split, or of a sample of `images` if it has more."""
        if self.parts:
            return _joined(self.parts, [part._at_most(images, seed) for part in self.parts])
        positions = self.split("train")
        if not 0 < images < len(positions):
            return positions
        key = images, seed
        if key not in self._thinned:
            labels = self.labels.numpy()[positions].tolist()
            parts = [""] * len(labels) if self.group is None else self.group[positions].tolist()
            self._thinned[key] = positions[balanced(parts, labels, images, seed)]
        return self._thinned[key]

    def part_key(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that determine `training` in addition to split and seed; {} for the whole
        split."""
        if len(self.training(recipe)) == len(self.split("train")):
            return {}
        dataset = recipe.dataset
        key = {"part": {"shots": dataset.shots, "fraction": dataset.fraction}}
        if 0 < dataset.train_images < len(self.split("train")):
            key["thinned"] = {
                "images": dataset.train_images,
                "seed": dataset.seed,
                **self.parts_key,
            }
        return key

    def split_key(self, dataset: DatasetRecipe) -> list[Any]:
        """The settings that determine the split and the outputs of a pack's classes."""
        more = filter(None, [self.split_by, self.outputs_digest])
        return [dataset.holdout, dataset.seed, *more]


class Sets:
    """The datasets of a recipe by name; datasets without a pack are encoded.

    packs: opened packs, by name. given_classes: the head's classes in order, if they are not the
    upstream dataset's. mask: the possible predictions: the dataset's classes (`present`), all
    (`none`), or as in the dataset's published accuracies (`benchmark`). published_masks: those of
    opened packs, by a dataset's name (`catalogue.published_masks`).
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        cache: Path,
        packs: Mapping[str, Pack] | None = None,
        given_classes: Sequence[str] = (),
        mask: str = "present",
        published_masks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if mask not in MASKS:
            raise ValueError(f"mask {mask!r} is not valid{nearest(mask, MASKS)}")
        self.recipe = recipe
        self.mask = mask
        self.published_masks = published_masks
        self.packs = packs or {}
        self.given_classes = tuple(given_classes)
        self.device = device
        self.cache = cache
        self._open: dict[str, LabelledSet] = {}
        self._sources: dict[str, Source] = {}
        self._photos: dict[str, frozenset[str]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The head's classes: the given ones, or those of `DatasetRecipe.head_classes`."""
        return self.given_classes or self[self.recipe.dataset.head_classes].pack.classes

    @functools.cached_property
    def class_texts(self) -> ClassTexts:
        """What CLIP's text tower reads of the head's classes."""
        return class_texts(self.recipe, self.classes)

    def __getitem__(self, name: str) -> LabelledSet:
        if name not in self._open and UNION in name and name not in self.packs:
            self._open[name] = union_of(name, [self[part] for part in trained_sets(name)])
        if name not in self._open:
            has_heads = name == self.recipe.dataset.head_classes and not self.given_classes
            is_probe = name in self.recipe.dataset.probe_sets
            head = () if has_heads or is_probe else self.classes
            # A pack that a user gave has no keys of its own.
            dataset, pack = self.recipe.dataset, self.packs.get(name)
            if pack is None:
                dataset = kinds.of_set(dataset, name)
                make = functools.partial(pack_of, self.recipe, name, self.cache)
                pack = ranks.first(lambda: make(head=head))
            head = head or pack.classes
            outputs = masks.outputs_of(pack, head, dataset.class_map)
            rule = self._mask_rule(name, dataset, pack, head)
            labels, mask = masks.to_head(pack, outputs, head, rule)
            split_by, train, holdout = splits.of_pack(pack, dataset)
            self._open[name] = LabelledSet(
                name,
                pack,
                labels,
                mask,
                train,
                holdout,
                masks.members(outputs, {label: i for i, label in enumerate(head)}),
                _parts(pack, dataset.parts),
                split_by,
                rule,
                dataset.class_reduction,
                {"parts": dataset.parts} if dataset.parts else {},
                short_digest([outputs, dataset.class_reduction]) if dataset.class_map else "",
                is_probe=is_probe,
                split_column=_split_column(dataset),
            )
        return self._open[name]

    def photos(self, name: str) -> frozenset[str]:
        """The photos of a dataset (`loaders.pack.photos`)."""
        if name not in self._photos:
            self._photos[name] = splits.photos_of(self[name].pack)
        return self._photos[name]

    def share_photos(self, name: str, other: str) -> bool:
        """Whether a dataset shows some of the photos of another, or of a union without it."""
        parts = trained_sets(other)
        shared = (self.photos(name) & self.photos(part) for part in parts)
        return name not in parts and any(shared)

    def seen_by_head(self, name: str, split: str) -> int:
        """The number of images of a split that show photos which fitted the head.

        0 if the weights include the head, or if sources do not identify the photos
        (`loaders.pack.photos`).
        """
        judged = self[name]
        shown = judged.pack.sources[judged.split(split)]
        seen = np.zeros(len(shown), bool)
        fitted_on = trained_sets(self.recipe.head_set) if self.recipe.head_set else []
        for part in filter(self.photos, fitted_on):
            seen |= np.isin(shown, self[part].pack.sources[self[part].split("train")])
        return int(seen.sum())

    def _mask_rule(self, name: str, dataset: DatasetRecipe, pack: Pack, head: Sequence[str]) -> str:
        if self.mask == "present" or len(pack.classes) == len(head):
            return "present"
        if self.mask == "none" or name not in self.packs:
            return "none" if self.mask == "none" else dataset.mask
        rules = self.published_masks
        if not (named := rules.get(name) or rules.get(pack.name)):
            raise ValueError(
                f"no recipe has a dataset {name!r}{nearest(name, rules)}, so the mask of published "
                "accuracies is unknown: name it as in --sets imagenet_a=FOLDER, or set --mask none "
                "or present"
            )
        return named

    def source(self, name: str) -> Source:
        """The source of a dataset's images: device memory, or a stream."""
        if name not in self._sources:
            self._sources[name] = self._opened(name, self[name].pack)
        return self._sources[name]

    def _opened(self, name: str, pack: Pack) -> Source:
        names = [name] if name in self.packs else trained_sets(name)
        of_sets = (kind_of(self.recipe.dataset, part) for part in names)
        is_streamed = any(kind.is_streamed() for kind in of_sets)
        return open_source(
            pack,
            self.device,
            "stream" if is_streamed else self.recipe.loader,
            # Columns of a campaign share the cores; torch knows this column's share.
            workers=min(8, max(2, torch.get_num_threads())),
        )

    def training_source(self, recipe: Recipe) -> Source:
        """The images of the downstream dataset, larger than the model's if training crops them.

        Raises ValueError if the larger images are not those of the dataset's pack.
        """
        name = recipe.downstream
        if not recipe.train.crops:
            return self.source(name)
        place = f"{name} to crop"
        if place not in self._sources:
            larger = to_train_on(dataclasses.replace(self.recipe, train=recipe.train))
            packs = [self._larger(larger, part) for part in trained_sets(name)]
            joined = packs[0] if len(packs) == 1 else _joined_pack(name, packs)
            self._sources[place] = self._opened(name, joined)
        return self._sources[place]

    def _larger(self, recipe: Recipe, name: str) -> Pack:
        """A dataset's pack of the recipe's larger images."""
        make = functools.partial(pack_of, recipe, name, self.cache)
        pack = ranks.first(lambda: make(head=self.classes))
        if not np.array_equal(pack.keys, self[name].pack.keys):
            raise ValueError(
                f"{pack.folder} and {self[name].pack.folder} have different images, so "
                f"training cannot crop {name}: delete the older folder and encode it again"
            )
        return pack

    def release(self, name: str) -> None:
        """Free the device memory of a dataset."""
        self._sources.pop(name, None)
        self._sources.pop(f"{name} to crop", None)


def class_texts(recipe: Recipe, classes: Sequence[str]) -> ClassTexts:
    """What CLIP's text tower reads of a head's classes, in order; logs which it reads by names.

    Without a name in `dataset.class_names`, a class of ImageNet-1K has OpenAI's, any other class
    its own name, with `_` read as a space. Raises RecipeError as `read_words`.
    """
    dataset, of_imagenet = recipe.dataset, imagenets_texts(recipe.model.weights)
    known = dict(zip(imagenet.wnids(), of_imagenet.words, strict=True))
    templates = of_imagenet.templates if known.keys() >= set(classes) else TEMPLATES
    if dataset.class_names:
        known |= read_words(Path(dataset.class_names), classes)
    if unnamed := [name for name in classes if name not in known]:
        log.info(
            "CLIP reads %d of %d classes by their names, such as %s: dataset.class_names=FILE sets "
            "names",
            len(unnamed),
            len(classes),
            unnamed[0],
        )
    words = tuple(known.get(name, name.replace("_", " ")) for name in classes)
    return ClassTexts(words, tuple(dataset.templates) or templates)


def union_of(name: str, parts: Sequence[LabelledSet]) -> LabelledSet:
    """The union of datasets as one, without a copy of their pixels.

    Each dataset keeps its split. Possible predictions are those of any dataset. Raises ValueError
    if datasets map classes to several outputs differently, or if a photo held out of one dataset is
    in the training split of another.
    """
    first, of_parts = parts[0], [part.mask for part in parts if part.mask is not None]
    for part in parts:
        if _outputs(part) != _outputs(first):
            raise ValueError(
                f"{first.name} and {part.name} cannot be one training set: a class of one is "
                "several outputs of the head, which the other predicts singly"
            )
    in_photos = [part for part in parts if len(part.holdout) and splits.photos_of(part.pack)]
    held_out = {*chain(*(part.pack.sources[part.holdout] for part in in_photos))}
    trained = {*chain(*(part.pack.sources[part.train] for part in in_photos))}
    if both := held_out & trained:
        raise ValueError(
            f"{name}: {len(both):,} photos are held out of one dataset and trained on in another: "
            "set dataset.holdout_by=source, which holds a photo out of all or of none"
        )
    return LabelledSet(
        name,
        _joined_pack(name, [part.pack for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.stack(of_parts).any(dim=0) if len(of_parts) == len(parts) else None,
        _joined(parts, [part.train for part in parts]),
        _joined(parts, [part.holdout for part in parts]),
        first.members,
        split_by=UNION.join(part.split_by for part in parts).strip(UNION),
        class_reduction=first.class_reduction,
        outputs_digest=first.outputs_digest,
        parts=tuple(parts),
    )


def _joined_pack(name: str, packs: Sequence[Pack]) -> Pack:
    return cast(Pack, JoinedPack(name, tuple(packs)))  # it has what training reads of a pack


def _outputs(labelled: LabelledSet) -> tuple[str, list[list[int]]]:
    return labelled.class_reduction, [] if labelled.members is None else labelled.members.tolist()


def _joined(parts: Sequence[LabelledSet], positions: Sequence[np.ndarray]) -> np.ndarray:
    """Positions in a union, from positions in each of its parts."""
    starts = np.cumsum([0, *(len(part.pack) for part in parts)])
    return np.concatenate([part + start for part, start in zip(positions, starts, strict=False)])


def _split_column(dataset: DatasetRecipe) -> str:
    """The column of a published split; empty without one, and if the recipe asks for the column."""
    column = dataset.split.column
    return "" if column in vars(dataset).get("columns", ()) else column


def _parts(pack: Pack, names: Sequence[str]) -> np.ndarray | None:
    """The part of each image (str [N]), which is the values of these columns, or None for none."""
    if not names:
        return None
    columns = [splits.column(pack, name) for name in names]
    return np.array(["/".join(values) for values in zip(*columns, strict=True)])
