"""Cells on disk: the trained or mixed models of the grid, by artefact name.

A cell is a folder with `cell.json` (what it offers for evaluation, the head's classes in order and
how the model sees images), the resolved recipe and versions, and, where it trained,
`weights.safetensors` that timm can load.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.machine import ranks
from engine.recipe import dump
from engine.recipe.schema import Recipe
from engine.store import tensors
from engine.store.artifacts import MARKER, Artifact, Store

log = logging.getLogger(__name__)
CELL = "cell.json"
SELF = "self"  # a trained cell's own name, unknown while it is written
PACKAGES = ("timm", "deepspeed", "numpy", "ffcv", "triton", "pillow")


Mix = Mapping[str, float]  # weights of cells by their names


@dataclass(frozen=True)
class Export:
    """A trained cell: a plain state dict of the architecture, and a prompt where there is one.

    `prompt` [3, H, W] is added to the normalised image. `shares_backbone` says that only the head
    differs from the base model, so that features can be shared.
    """

    state: dict[str, torch.Tensor]
    prompt: torch.Tensor | None = None
    shares_backbone: bool = False


@dataclass(frozen=True)
class Entry:
    """A model a cell offers for evaluation: weights averaged over cells, by their names."""

    mix: dict[str, float]
    alpha: float | None = None
    headline: bool = True  # stands in the table; the others are points of a curve


def essential(mix: Mix) -> dict[str, float]:
    """The mix without members of weight zero: alpha = 0 is the pre-trained model itself."""
    return {name: float(weight) for name, weight in sorted(mix.items()) if weight != 0}


@dataclass(frozen=True)
class Cell:
    """A finished cell, or a backbone's weights seen as one."""

    artifact: Artifact

    @property
    def name(self) -> str:
        return self.artifact.name

    @cached_property
    def meta(self) -> dict[str, Any]:
        if not (self.artifact.folder / CELL).is_file():
            return {}
        return json.loads(self.artifact.checked(CELL).read_text())

    @property
    def entries(self) -> list[Entry]:
        """The models it offers, its own name filled in."""
        entries = [Entry(**entry) for entry in self.meta.get("entries", [{"mix": {SELF: 1.0}}])]
        return [
            dataclasses.replace(e, mix={self.name if n == SELF else n: w for n, w in e.mix.items()})
            for e in entries
        ]

    @property
    def backbone(self) -> str:
        """Name of the cell whose backbone it shares, its own where it has one of its own."""
        return self.meta.get("backbone") or self.name

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, on the CPU. Raises ValueError if its file was altered."""
        return load_file(self.artifact.checked(tensors.WEIGHTS))

    def tensors(self, *names: str) -> list[torch.Tensor]:
        """Some tensors of the state dict, on the CPU; the others are not read."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return [file.get_tensor(name) for name in names]

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor of the state dict, which is not read."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return file.get_slice(name).get_shape()

    def prompt(self) -> torch.Tensor | None:
        """The input prompt [3, H, W] of a visual-prompt cell."""
        if not (self.artifact.folder / tensors.PROMPT).is_file():
            return None
        return load_file(self.artifact.checked(tensors.PROMPT))["prompt"]


def find(store: Store, name: str) -> Cell | None:
    """The finished cell of this name, or the backbone's weights seen as one; None if not there."""
    for kind in ("cells", "weights"):
        folder = store.root / kind / name
        if (folder / MARKER).is_file():
            return Cell(Artifact(kind, name, folder, {}))
    return None


def write_trained(
    folder: Path, recipe: Recipe, export: Export, backbone: str, description: Mapping[str, Any]
) -> None:
    """Fill a folder with a trained cell.

    backbone: the base model's. description: the head's classes, and how the model sees images.
    """
    tensors.save(export.state, folder / tensors.WEIGHTS)
    if export.prompt is not None:
        tensors.save({"prompt": export.prompt}, folder / tensors.PROMPT)
        log.info(
            "%s on %s has an input prompt beside its weights; timm, which loads weights alone, "
            "lacks it",
            recipe.method.name,
            recipe.downstream,
        )
    shared = backbone if export.shares_backbone else None
    _describe(folder, recipe, [Entry({SELF: 1.0})], shared, description)


def write_mixed(
    folder: Path, recipe: Recipe, entries: Sequence[Entry], description: Mapping[str, Any]
) -> None:
    """Fill a folder with a mixed cell, which holds no weights; description as of a trained one.

    Raises ValueError unless exactly one entry is the headline: it is the method's row in tables.
    """
    if (count := sum(entry.headline for entry in entries)) != 1:
        raise ValueError(
            f"method {recipe.method.name} names {count} of its {len(entries)} entries as "
            "headline: a table shows exactly one, so set `headline` of `Entry` for that one only"
        )
    _describe(folder, recipe, entries, None, description)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the machine's kind."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # whose widest sums round otherwise
        "torch": torch.__version__,  # with its build, which the package's metadata may leave out
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def _describe(
    folder: Path,
    recipe: Recipe,
    entries: Sequence[Entry],
    backbone: str | None,
    description: Mapping[str, Any],
) -> None:
    (folder / "recipe.yaml").write_text(dump(recipe))
    made_by = versions() | {"threads": str(recipe.threads), "ranks": str(ranks.world())}
    (folder / "versions.json").write_text(json.dumps(made_by, indent=1))
    meta = {
        "method": recipe.method.name,
        "variant": recipe.method.variant,
        "downstream": recipe.downstream,
        "backbone": backbone,
        "entries": [dataclasses.asdict(entry) for entry in entries],
        **description,
    }
    (folder / CELL).write_text(json.dumps(meta, indent=1))
