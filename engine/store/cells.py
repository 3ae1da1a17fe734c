"""Cells on disk: the trained or mixed models of the grid, by artefact name.

A cell is a folder with `cell.json` (the models to evaluate, the head's classes in order and how the
model sees images), the resolved recipe, versions and, where it was trained, `weights.safetensors`,
which timm can load.
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
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.machine import ranks
from engine.measures.predictions import Average, Ensemble, Mix, average_of
from engine.measures.setting import PLAIN, Setting
from engine.recipe.schema import Recipe
from engine.store import tensors
from engine.store.artifacts import MARKER, Artifact, Store
from loaders.names import is_name
from loaders.schema import DamagedFile

log = logging.getLogger(__name__)
CELL, HISTORY = "cell.json", "history.json"
SELF = "self"  # stands for a trained cell's name, which is unknown while it is written
KINDS = ("cells", "weights", "snapshots")  # of artefacts that are models
PACKAGES = ("timm", "deepspeed", "numpy", "ffcv", "triton", "pillow")


@dataclass(frozen=True)
class Export:
    """A trained model: a plain state dict of the architecture, and an input prompt if it has one.

    prompt: [3, H, W], added to the normalised image. shares_backbone: only the head differs from
    the base model, so features can be shared.
    """

    state: dict[str, torch.Tensor]
    prompt: torch.Tensor | None = None
    shares_backbone: bool = False


@dataclass(frozen=True)
class Entry:
    """A model that a cell has evaluated: an average of cells' weights or outputs, by their names.

    setting: of its arm (`engine.measures.rows`), in addition to the column's.
    """

    mix: dict[str, float] | Ensemble
    alpha: float | None = None
    headline: bool = True  # the table shows it; other entries are points of a curve
    setting: Setting = PLAIN


@dataclass(frozen=True)
class Gated:
    """An ensemble of two models with the weights `failures`, and what they depend on.

    failures: unit features [M, D] of the second model for images that it gets right and the first
    wrong. temperatures: [2], by which the members' logits are divided. neighbour: which nearest
    failure an image's squared distance d is taken to; the second model then has the weight
    sigmoid((middle - d) / width).
    """

    members: tuple[str, str]
    failures: torch.Tensor
    temperatures: torch.Tensor
    neighbour: int
    middle: float
    width: float

    @property
    def entry(self) -> Entry:
        return Entry(Ensemble(self.members, "failures", SELF))

    @property
    def reference(self) -> dict[str, torch.Tensor]:
        """As a file holds it."""
        numbers = torch.tensor([self.neighbour, self.middle, self.width], dtype=torch.float64)
        return {
            "failures": self.failures,
            "temperatures": self.temperatures,
            "numbers": numbers,
        }


@overload
def canonical_mix(average: Ensemble) -> Ensemble: ...
@overload
def canonical_mix(average: Mix) -> dict[str, float]: ...
def canonical_mix(average: Average) -> dict[str, float] | Ensemble:
    """The average in the order of names, and without cells of weight zero: alpha = 0 is the
    pre-trained model itself."""
    if isinstance(average, Ensemble):
        if average.weights == "failures":  # of a first and a second
            return average
        return dataclasses.replace(average, members=tuple(sorted(average)))
    return {name: float(weight) for name, weight in sorted(average.items()) if weight != 0}


@dataclass(frozen=True)
class Cell:
    """A finished cell, or a pre-trained backbone in the role of a cell."""

    artifact: Artifact

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def proof(self) -> Path:
        """The file that was written last."""
        return self.artifact.proof

    @cached_property
    def meta(self) -> dict[str, Any]:
        if not self.artifact.has(CELL):
            return {}
        return json.loads(self.artifact.checked(CELL).read_text("utf-8"))

    @property
    def entries(self) -> list[Entry]:
        """The models that are evaluated, with the cell's name in place of `SELF`."""
        plain = self.meta.get("entries", [{"mix": {SELF: 1.0}}])
        mixes = [self._named(entry["mix"]) for entry in plain]
        return [
            Entry(**{**entry, "mix": mix, "setting": Setting(entry.get("setting", {}))})
            for entry, mix in zip(plain, mixes, strict=True)
        ]

    def _named(self, plain: dict[str, Any]) -> dict[str, float] | Ensemble:
        """An entry's average, with the cell's name in place of `SELF`."""
        if SELF in plain:
            return {self.name: 1.0}
        average = average_of(plain)
        if isinstance(average, Ensemble) and average.reference == SELF:
            return dataclasses.replace(average, reference=self.name)
        return average

    @property
    def steps(self) -> int:
        """Optimizer steps that made it; 0 for a mix, a fitted head and a backbone."""
        if not self.artifact.has(HISTORY):
            return 0
        history = json.loads(self.artifact.checked(HISTORY).read_bytes())
        return int(history[-1].get("step", 0))

    @property
    def backbone(self) -> str:
        """Name of the cell that it shares its backbone with; its name where it shares none."""
        return self.meta.get("backbone") or self.name

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, on the CPU. Raises ValueError if its file was altered."""
        return load_file(self.artifact.checked(tensors.WEIGHTS))

    def tensors(self, *names: str) -> list[torch.Tensor]:
        """The named tensors of the state dict, on the CPU; no other is read."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return [file.get_tensor(name) for name in names]

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor of the state dict; the tensor is not read."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return file.get_slice(name).get_shape()

    def reference(self) -> dict[str, torch.Tensor]:
        """The tensors of a cell that an ensemble names as its reference; see `Gated`."""
        return load_file(self.artifact.checked(tensors.REFERENCE))

    def prompt(self) -> torch.Tensor | None:
        """The input prompt [3, H, W] of a visual-prompt cell."""
        if not self.artifact.has(tensors.PROMPT):
            return None
        return load_file(self.artifact.checked(tensors.PROMPT))["prompt"]


def find(store: Store, name: str) -> Cell | None:
    """The finished cell, pre-trained backbone or snapshot of this name, or None.

    Raises DamagedFile for a name that is none, such as one with a slash.
    """
    if not is_name(name):
        raise DamagedFile(f"{name!r:.100} cannot be the name of a cell in {store.root}")
    for kind in KINDS:
        if store.files.has(f"{kind}/{name}/{MARKER}"):
            return Cell(Artifact(store.root / kind / name))
    return None


def write_trained(
    folder: Path, recipe: Recipe, export: Export, backbone: str, description: Mapping[str, Any]
) -> None:
    """Write a trained cell into a folder.

    backbone: name of the base model's. description: the head's classes, and how the model sees
    images.
    """
    tensors.save(export.state, folder / tensors.WEIGHTS)
    if export.prompt is not None:
        tensors.save({"prompt": export.prompt}, folder / tensors.PROMPT)
        log.info(
            "%s on %s has an input prompt, which timm does not load with the weights",
            recipe.method.name,
            recipe.downstream,
        )
    shared = backbone if export.shares_backbone else None
    _describe(folder, recipe, [Entry({SELF: 1.0})], shared, description)


def write_mixed(
    folder: Path, recipe: Recipe, entries: Sequence[Entry], description: Mapping[str, Any]
) -> None:
    """Write a mixed cell, which holds no weights, into a folder; see `write_trained`.

    Raises ValueError unless exactly one entry is the headline, which is the method's row in tables.
    """
    if (count := sum(entry.headline for entry in entries)) != 1:
        raise ValueError(
            f"method {recipe.method.name} names {count} of its {len(entries)} entries as "
            "headline: a table shows exactly one, so set `headline` of `Entry` for that one only"
        )
    _describe(folder, recipe, entries, None, description)


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, and the kind of machine."""
    versions = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # its vectors' width decides rounding
        # Names the build, which the package's metadata may leave out; a class of torch's own.
        "torch": str(torch.__version__),
    }
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    if torch.cuda.is_available():
        versions["device"] = torch.cuda.get_device_name()
    return versions


def _describe(
    folder: Path,
    recipe: Recipe,
    entries: Sequence[Entry],
    backbone: str | None,
    description: Mapping[str, Any],
) -> None:
    made_by = versions() | {"threads": str(recipe.threads), "ranks": str(ranks.world())}
    (folder / "versions.json").write_text(json.dumps(made_by, indent=1), "utf-8")
    meta = {
        "method": recipe.method.name,
        "variant": recipe.method.variant,
        "downstream": recipe.downstream,
        "backbone": backbone,
        "entries": [dataclasses.asdict(entry) for entry in entries],
        **description,
    }
    (folder / CELL).write_text(json.dumps(meta, indent=1), "utf-8")
