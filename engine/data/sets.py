"""The sets of a benchmark, packed for one model and seen through its head.

A pack holds pixels and the set's own labels; what the engine needs on top is which outputs of the
head those labels mean, which outputs take part at all, and which images are held out.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import models
from engine.data import grouping, imagenet
from engine.data.holdout import split, units_of
from engine.errors import nearest
from engine.machine import ranks
from engine.machine.files import digest
from engine.recipe.schema import DatasetRecipe, ModelRecipe, Recipe
from loaders import folders, rgb, trees
from loaders.batch import Source
from loaders.benchmarks import emoji, imagenet_c
from loaders.encode import encode, left_out
from loaders.pack import MANIFEST, Item, Pack
from loaders.stream import open_source
from loaders.trees import Listing, first_names

log = logging.getLogger(__name__)
PACK_FORMAT = 1
PARALLEL_FROM = 5000  # images
MASKS = ("none", "present", "benchmark")


@dataclass(frozen=True)
class Content:
    """What goes into a pack: its samples, their classes and how an image is opened.

    `extra` is kept in the manifest. `large`: encoding is worth going on with after a stop.
    """

    items: Sequence[Item]
    classes: Sequence[str]
    open_image: Callable[[Any], Any]
    fingerprint: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    large: bool = False


@dataclass(frozen=True)
class LabelledSet:
    """A pack with its labels in the head's order (int64 [N]), class mask (bool [C]) and split.

    `members`: the outputs of each class where a class is several (`grouping`). `group`: str
    [N], the part of the set in which an image counts, where parts are to count alike (IN-C).
    `by_source`: the split keeps the copies of a source image on one side. `mask_rule`: `none` where
    the head has classes beyond the set's that count as wrong answers, else `present`.
    """

    name: str
    pack: Pack
    labels: torch.Tensor
    mask: torch.Tensor | None
    train: np.ndarray
    holdout: np.ndarray
    members: torch.Tensor | None = None
    group: np.ndarray | None = None
    by_source: bool = False
    mask_rule: str = "present"

    def split(self, name: str) -> np.ndarray:
        """Positions (int64) of `all`, `train` or `holdout`; all where nothing is held out."""
        everything = np.arange(len(self.pack))
        if name == "all" or not len(self.holdout):
            return everything
        return {"train": self.train, "holdout": self.holdout}[name]

    def split_key(self, dataset: DatasetRecipe) -> list[Any]:
        """What determines the split, beside the pack."""
        return [dataset.holdout, dataset.seed, *(["by source"] if self.by_source else [])]


class Sets:
    """Opens the sets of one recipe, encoding a pack when there is none yet.

    `packs`: sets that are there already, by name. `given_classes`: the head's classes in order,
    where no upstream set tells them. `mask`: which outputs can be an answer: those of the set's
    classes (`present`), all (`none`), or all but where the set's accuracy is published otherwise
    (`benchmark`).
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        cache: Path,
        packs: Mapping[str, Pack] | None = None,
        given_classes: Sequence[str] = (),
        mask: str = "present",
    ) -> None:
        if mask not in MASKS:
            raise ValueError(f"mask {mask!r} is not possible{nearest(mask, MASKS)}")
        self.recipe = recipe
        self.mask = mask
        self.packs = packs or {}
        self.given_classes = tuple(given_classes)
        self.device = device
        self.cache = cache
        self._open: dict[str, LabelledSet] = {}
        self._sources: dict[str, Source] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The head's classes: those that were given, or those of the upstream set."""
        return self.given_classes or self[self.recipe.dataset.upstream].pack.classes

    def __getitem__(self, name: str) -> LabelledSet:
        if name not in self._open:
            pack = self.packs.get(name) or ranks.first(
                lambda: pack_of(self.recipe, name, self.cache)
            )
            dataset = self.recipe.dataset
            is_upstream = name == dataset.upstream and not self.given_classes
            head = pack.classes if is_upstream else self.classes
            classes = names_in_head(pack.classes, head)
            rule = self._mask_rule(pack, classes, head)
            labels, mask = to_head(pack, head, rule)
            units = units_of(pack.labels, pack.sources) if dataset.holdout else None
            train, holdout = split(pack.labels, dataset.holdout, dataset.seed, units)
            self._open[name] = LabelledSet(
                name,
                pack,
                labels,
                mask,
                train,
                holdout,
                grouping.members(classes, {wanted: i for i, wanted in enumerate(head)}),
                _group(pack),
                units is not None,
                rule,
            )
        return self._open[name]

    def _mask_rule(self, pack: Pack, classes: Sequence[str], head: Sequence[str]) -> str:
        by_set = self.mask == "benchmark" and published_among_its_classes(pack, classes)
        return (
            "present" if self.mask == "present" or by_set or len(classes) == len(head) else "none"
        )

    def source(self, name: str) -> Source:
        """Where the images of a set come from: device memory, or a stream, as of all of IN-C."""
        if name not in self._sources:
            mode = self.recipe.source
            if imagenet.is_whole_c(self.recipe.dataset, name) and mode != "ffcv":
                mode = "stream"
            self._sources[name] = open_source(
                self[name].pack,
                self.device,
                mode,  # type: ignore[arg-type]  # checked
                # The columns of a campaign share the cores, and torch knows this one's part.
                workers=min(8, max(2, torch.get_num_threads())),
            )
        return self._sources[name]

    def release(self, name: str) -> None:
        """Give the device memory of a set back."""
        self._sources.pop(name, None)


def pack_of(recipe: Recipe, name: str, cache: Path) -> Pack:
    """The pack of a set for a recipe's model; encoded now if it is not there."""
    dataset, model = recipe.dataset, recipe.model
    folder = pack_folder(Path(recipe.runs), dataset, model, name)
    if (folder / MANIFEST).is_file():
        pack = Pack.open(folder)
        _refuse_other(pack, identity(dataset, model, name))
        _tell_skipped(pack)
        _refuse_changed(pack, Path(dataset.root) / name if dataset.kind == "folder" else None)
        if dataset.kind == "imagenet" and (lacks := imagenet.shortfall(dataset, name, pack)):
            log.warning("%s is a part of the published set: %s", name, lacks)
        return pack
    content = CONTENT[dataset.kind](dataset, name, cache)
    pack = make_pack(recipe, name, content, skip=dataset.undecodable == "skip")
    for kind, names in pack.manifest.get("remarks", {}).items():
        log.warning("%s: %s: %s", name, kind, names)
    _tell_skipped(pack)
    return pack


def make_pack(
    recipe: Recipe, name: str, content: Content, *, workers: int = 0, skip: bool = False
) -> Pack:
    """Encode what was found of a set, in the place where `pack_of` looks for it.

    workers: processes; 0 takes one, or all cores for a large set. skip: leave out, and list in the
    manifest, images that do not decode.
    """
    transform = models.transform(recipe.model)
    # Each worker imports torch and timm first, which only a large set pays back.
    parallel = len(os.sched_getaffinity(0)) if len(content.items) > PARALLEL_FROM else 1
    return encode(
        pack_folder(Path(recipe.runs), recipe.dataset, recipe.model, name),
        name=name,
        items=content.items,
        open_image=content.open_image,
        transform=transform,
        transform_spec=transform.spec,
        classes=content.classes,
        source_fingerprint=content.fingerprint,
        extra={**content.extra, "identity": identity(recipe.dataset, recipe.model, name)},
        format=recipe.dataset.pack_format,  # type: ignore[arg-type]  # checked with the recipe
        background=recipe.dataset.background,
        workers=workers or parallel,
        on_error="skip" if skip else "refuse",
        resume=content.large,
    )


def pack_folder(runs: Path, dataset: DatasetRecipe, model: ModelRecipe, name: str) -> Path:
    """`runs/packs/<set>-<hash>`: models with the same transform share a pack."""
    return runs / "packs" / f"{name}-{digest(identity(dataset, model, name))}"


def identity(dataset: DatasetRecipe, model: ModelRecipe, name: str) -> dict[str, Any]:
    """What of a recipe determines a set's pack."""
    if dataset.kind == "imagenet":
        key = imagenet.identity(dataset, name)
    else:
        unrelated = {"name", "sets", "holdout", "objectnet", "subsample"}
        unrelated |= {"undecodable", "background"}  # below, where they are not the default
        key = {k: v for k, v in dataclasses.asdict(dataset).items() if k not in unrelated}
    if dataset.undecodable == "skip":
        key["undecodable"] = "skip"
    if name == imagenet.OBJECTNET and key.get("objectnet") == "paper":
        key["Wheel"] = "paddle wheel"  # packs without this line have it as a car wheel
    if rgb.colour(dataset.background) != rgb.colour(rgb.WHITE):
        key["background"] = list(rgb.colour(dataset.background))
    return key | {"set": name, "transform": models.transform(model).spec, "format": PACK_FORMAT}


def to_head(
    pack: Pack, head: Sequence[str], mask_rule: str = "present"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels in the head's order, and the mask of outputs that can be an answer (None: all can).

    `mask_rule`: `present` leaves the classes of the set, `none` all of the head. A class that is
    several outputs answers by its first alone under either. Raises ValueError naming the classes of
    the set that the head does not know.
    """
    position = {name: i for i, name in enumerate(head)}
    outputs = [grouping.names(name, position) for name in names_in_head(pack.classes, head)]
    unknown = [name for names in outputs for name in names if name not in position]
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""
        close = ", ".join(f"{name!r}{_nearest_class(name, head)}" for name in unknown[:3])
        raise ValueError(
            f"{pack.name} has {len(unknown)} classes that the model's head lacks: {close}{more}; "
            f"its folders are to bear the names of the head's {len(head)} classes"
        )
    first = torch.tensor([position[names[0]] for names in outputs], dtype=torch.int64)
    labels = first[torch.from_numpy(np.array(pack.labels))]
    mask = torch.full((len(head),), mask_rule == "none")
    mask[[position[name] for names in outputs for name in names]] = False
    mask[first] = True
    return labels, None if mask.all() else mask


def names_in_head(classes: Sequence[str], head: Sequence[str]) -> Sequence[str]:
    """A set's classes as a head names them: folders of an ImageNet-1K set may be named by numbers,
    which count the head's outputs from 0."""
    if tuple(head) != imagenet.wnids() or not all(name.isdecimal() for name in classes):
        return classes
    numbers = [int(name) for name in classes]
    fit = max(numbers) < len(head) and len(set(numbers)) == len(numbers)
    return [head[number] for number in numbers] if fit else classes


def published_among_its_classes(pack: Pack, classes: Sequence[str]) -> bool:
    """Whether the published accuracies on a set, of `classes` in the head's names, are among these
    classes alone: IN-A, IN-R and ObjectNet."""
    made_of = pack.manifest["extra"].get("identity", {})
    is_objectnet = (made_of.get("kind"), made_of.get("set")) == ("imagenet", imagenet.OBJECTNET)
    return is_objectnet or imagenet.is_a_or_r(classes)


def _nearest_class(name: str, head: Sequence[str]) -> str:
    """The class of the head that a name may mean, as a question; empty where none is close."""
    meant = {known: known for known in head}
    if tuple(head) == imagenet.wnids():
        meant |= {synonym: f"{wnid} ({synonym})" for synonym, wnid in imagenet.synonyms().items()}
    close = difflib.get_close_matches(name.replace("_", " "), meant, n=1, cutoff=0.6)
    return f" (is it {meant[close[0]]}?)" if close else ""


@functools.cache
def _artwork(cache: Path) -> emoji.Artwork:
    return emoji.fetch(cache)  # and opened: a second and more, for each of the ten sets


def _emoji(dataset: DatasetRecipe, name: str, cache: Path) -> Content:
    styles = emoji.UPSTREAM if name == dataset.upstream else (name,)
    concepts = _artwork(cache).choose(dataset.classes, dataset.seed)
    rendering = (dataset.renderings, dataset.seed, dataset.source_px)
    return Content(
        emoji.items(cache, styles, concepts, *rendering),
        [concept.name for concept in concepts],
        emoji.open_image,
        emoji.fingerprint(styles, concepts, *rendering),
    )


def _folder(dataset: DatasetRecipe, name: str, cache: Path) -> Content:
    listing = folders.read(Path(dataset.root) / name)
    if listing.left_out:
        log.warning("%s: left out, no <class>/<image>: %s", name, first_names(listing.left_out))
    return Content(listing.items, listing.classes, trees.open_image, listing.fingerprint)


def content_of(listing: Listing, name: str) -> Content:
    """An ImageNet set as it lies on a disk, as the content of a pack."""
    extra = {"group_depth": listing.group_depth, "faults": list(listing.faults)}
    return Content(
        listing.items,
        listing.classes,
        imagenet.opener(name),
        listing.fingerprint,
        {key: value for key, value in extra.items() if value},
        large=True,
    )


def _imagenet(dataset: DatasetRecipe, name: str, cache: Path) -> Content:
    source = Path(dataset.root) / name
    if not dataset.root or imagenet.is_whole_c(dataset, name):
        raise ValueError(
            f"{name} is not encoded for this model's transform; run "
            f"`rib encode {name} --source FOLDER --model MODEL` with the same runs= and dataset.*"
        )
    return content_of(imagenet.read(dataset, name, source), name)


def _group(pack: Pack) -> np.ndarray | None:
    depth = pack.manifest["extra"].get("group_depth", 0)
    if not depth:
        return None
    return np.array([imagenet_c.part_of(key, depth) for key in pack.keys.tolist()])


def _tell_skipped(pack: Pack) -> None:
    if skipped := pack.manifest["skipped"]:
        log.warning("%s lacks %s", pack.name, left_out(skipped, len(pack) + len(skipped)))


def _refuse_other(pack: Pack, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError where a pack was made by other options than its folder's name says."""
    stored = pack.manifest["extra"].get("identity", {})
    keys = [key for key in sorted(stored | wanted) if stored.get(key) != wanted.get(key)]
    if keys:
        raise ValueError(
            f"{pack.folder} holds another pack: "
            + ", ".join(f"{key}: {stored.get(key)!r}, not {wanted.get(key)!r}" for key in keys)
            + "; move it to the folder that it came from, and run again"
        )


def _refuse_changed(pack: Pack, root: Path | None) -> None:
    """Raise ValueError where the images a pack was made of are there, but no longer the same."""
    if root is None or not root.is_dir():
        return
    if folders.read(root).fingerprint != pack.manifest["source_fingerprint"]:
        raise ValueError(
            f"the images in {root} changed since {pack.folder} was made of them; undo the change, "
            "or use another runs=FOLDER, or give the new images another dataset.root="
        )


CONTENT: dict[str, Callable[[DatasetRecipe, str, Path], Content]] = {
    "emoji": _emoji,
    "folder": _folder,
    "imagenet": _imagenet,
}
