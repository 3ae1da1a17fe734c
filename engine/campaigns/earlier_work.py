"""Finished work that a campaign finds in the store although other code or versions made it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.campaigns.plan import Plan
from engine.campaigns.record import Record
from engine.measures.rows import trained_sets
from engine.recipe.effects import training_values
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import made_by
from engine.store.artifacts import Marker, Store
from loaders.files.durable import short_digest
from loaders.pack import JoinedPack, Pack

OF_BASE = ("features", "fisher", "predictions")  # kinds of artefacts of a pretrained model
OF_DEVICE = ("precision", "compile")  # values of a training that its device decides


def remarks(plan: Plan, device: str | None) -> list[str]:
    """What to know before a campaign starts: how many finished cells and artefacts of the
    pretrained model it reuses although other code or versions made them, what differs, and how
    many finished cells it trains anew because their method's source changed.

    device: the kind of device of its jobs (`made_by.kind_of_device`), or None if unknown. Opens
    datasets only if something in the store differs.
    """
    store = Store(plan.place.store, plan.recipe.generation)
    now = {**made_by.installed(), **({made_by.DEVICE: device} if device else {})}
    markers = {
        artifact.name: marker
        for artifact, marker in store.artifacts(("cells", "weights"))
        if marker.key.get("generation", 0) == store.generation
    }
    sources = set(plan.modules.values())
    if not any(
        made_by.differences(marker.made_by, now) or _source(marker) not in ("", *sources)
        for marker in markers.values()
    ):
        return []
    fingerprints = _fingerprints(plan)
    of_model = {
        name
        for name in {*markers, *(str(marker.key.get("base")) for marker in markers.values())}
        if _is_model(_weights_of(name, markers), plan.recipe.model)
    }
    bases = {name for name in of_model if _is_base(name, markers)}
    wanted = {
        _of_recipe(cell.recipe, fingerprints): cell.recipe.method.title
        for column in plan.columns
        for row in plan.cells(column)
        for cell in row.all()
    }
    titles, differing = Counter[str](), dict[str, None]()
    cells = others = 0
    for name in sorted(of_model & markers.keys()):
        marker = markers[name]
        words = made_by.differences(marker.made_by, now)
        title = wanted.get(_of_marker(marker)) if "base" in marker.key else None
        if title and _source(marker) not in sources:
            titles[title] += 1
        elif words and (title or name in bases):
            cells, others = cells + bool(title), others + (not title)
            differing |= dict.fromkeys(words)
    packs = set(fingerprints.values())
    for marker in _of_bases(store, bases):
        if marker.key.get("pack") in packs and (words := made_by.differences(marker.made_by, now)):
            others += 1
            differing |= dict.fromkeys(words)
    lines = []
    if differing:
        lines.append(
            f"other code or versions made {cells} finished cells and {others} artefacts of the "
            f"pretrained model ({', '.join(sorted(differing))}), which are reused; "
            f"generation={store.generation + 1} makes everything anew"
        )
    if titles:
        lines.append(
            f"{titles.total()} finished cells are trained anew, since the source of their method "
            f"changed ({', '.join(titles)})"
        )
    return [f"{plan.place.campaign.name}: {line}" for line in lines]


def of_record(record: Record) -> str:
    """A remark on a finished campaign that other code or versions than the installed ones made, or
    empty."""
    differing = dict[str, None]()
    count = 0
    for maker in record.made_by:
        if words := made_by.differences(maker.values, made_by.installed()):
            differing |= dict.fromkeys(words)
            count += maker.artifacts
    if not count:
        return ""
    return (
        f"other code or versions than the installed ones made {count} of its artefacts "
        f"({', '.join(differing)})"
    )


def _source(marker: Marker) -> str:
    """The digest of a cell's method; empty for pretrained weights."""
    return str(marker.key["method"]["source"]) if "method" in marker.key else ""


def _weights_of(name: str, markers: Mapping[str, Marker]) -> Marker | None:
    """The marker of the pretrained weights that a cell starts from."""
    marker = markers.get(name)
    while marker is not None and "base" in marker.key:
        marker = markers.get(str(marker.key["base"]))
    return marker


def _is_model(weights: Marker | None, model: ModelRecipe) -> bool:
    stored = weights.key.get("model") if weights else None
    if not isinstance(stored, dict):
        return False
    wanted = dataclasses.asdict(model)
    moved = ("path", "source")  # the same file may be elsewhere
    of_weights = {key: value for key, value in stored["weights"].items() if key not in moved}
    same = all(wanted["weights"].get(key) == value for key, value in of_weights.items())
    return same and all(stored[key] == wanted[key] for key in ("arch", "image_size"))


def _is_base(name: str, markers: Mapping[str, Marker]) -> bool:
    """Whether cells start from a model: pretrained weights, or these with a fitted head."""
    is_weights = name in markers and "base" not in markers[name].key
    return is_weights or any(marker.key.get("base") == name for marker in markers.values())


def _of_bases(store: Store, bases: Collection[str]) -> list[Marker]:
    """The markers of features, Fisher and predictions of pretrained models."""
    found = []
    for label in {"", *(name.rsplit("-", 1)[0] for name in bases)}:
        for _, marker in store.artifacts(OF_BASE if label else ("fisher",), label):
            mix = marker.key.get("mix")
            models = [marker.key.get("model")] if mix is None else [*mix]
            if set(models) <= set(bases):
                found.append(marker)
    return found


def _fingerprints(plan: Plan) -> dict[str, str]:
    """The fingerprints of the packs that there are, by dataset or union of datasets."""
    from engine.data import packs  # late: it imports torch

    found = {
        name: Pack.open(packs.pack_folder(plan.recipe, name))
        for name in plan.needed
        if packs.is_encoded(plan.recipe, name)
    }
    prints = {name: pack.fingerprint for name, pack in found.items()}
    for union in plan.downstreams:
        parts = trained_sets(union)
        if len(parts) > 1 and all(part in found for part in parts):
            prints[union] = JoinedPack(union, tuple(found[part] for part in parts)).fingerprint
    return prints


def _of_recipe(recipe: Recipe, fingerprints: Mapping[str, str]) -> str:
    """A digest of what a plan knows of a cell's key, as `_of_marker`."""
    method = {**dataclasses.asdict(recipe.method), "module": Path(recipe.method.module).name}
    dataset = recipe.dataset
    return _digest(
        method,
        dataclasses.asdict(recipe.optimizer),
        training_values(recipe.train),
        [
            recipe.seed,
            fingerprints.get(recipe.downstream),
            {"shots": dataset.shots, "fraction": dataset.fraction},
        ],
    )


def _of_marker(marker: Marker) -> str:
    key = marker.key
    part = key.get("part", {"shots": 0, "fraction": 1.0})
    return _digest(
        key["method"], key["optimizer"], key["train"], [key["seed"], key["target"], part]
    )


def _digest(
    method: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    train: Mapping[str, Any],
    others: Sequence[Any],
) -> str:
    method = {key: value for key, value in method.items() if key not in ("title", "source")}
    train = {key: value for key, value in train.items() if key not in OF_DEVICE}
    return short_digest([method, optimizer, train, others])
