"""Cells on disk: the trained or mixed models of the grid, by artefact name.

A cell is a folder with `cell.json` (the models to evaluate, the head's classes in order and the
model's image transform), the resolved recipe, versions and, if it was trained,
`weights.safetensors`, which timm can load.
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
from engine.measures.rows import PLAIN, Setting
from engine.model_files.descriptions import CELL, VERSIONS
from engine.recipe.schema import Recipe
from engine.store import tensors
from engine.store.artifacts import MARKER, Artifact, Store
from loaders.files.names import is_name
from loaders.files.typed_json import DamagedFile

log = logging.getLogger(__name__)
HISTORY = "history.json"
SELF = "self"  # placeholder for a trained cell's name, unknown while it is written
KINDS = ("cells", "weights", "snapshots")  # kinds of artefacts that are models
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
    """A model that a cell evaluates: an average of cells' weights or outputs, by their names.

    setting: of its arm (`engine.measures.rows`), in addition to the column's.
    """

    mix: dict[str, float] | Ensemble
    alpha: float | None = None
    headline: bool = True  # shown in the table; other entries are points of a curve
    setting: Setting = PLAIN


@dataclass(frozen=True)
class Gated:
    """An ensemble of two models weighted by `failures`, and the numbers of its weight function.

    failures: unit features [M, D] of the second model for images that it classifies correctly and
    the first does not. temperatures: [2], which divide the members' logits. neighbour: k, counted
    from 1, such that d is an image's squared distance to its k-th nearest failure. The second model
    gets the weight sigmoid((middle - d) / width).
    """

    members: tuple[str, str]
    failures: torch.Tensor
    temperatures: torch.Tensor
    neighbour: int
    middle: float
    width: float

    @property
    def reference(self) -> dict[str, torch.Tensor]:
        """The tensors of the reference file."""
        numbers = torch.tensor([self.neighbour, self.middle, self.width], dtype=torch.float64)
        return {"failures": self.failures, "temperatures": self.temperatures, "numbers": numbers}


@overload
def canonical_mix(average: Ensemble) -> Ensemble: ...
@overload
def canonical_mix(average: Mix) -> dict[str, float]: ...
def canonical_mix(average: Average) -> dict[str, float] | Ensemble:
    """Returns the average in the order of names, without cells of weight zero.

    An average with alpha = 0 is thus the pretrained model itself.
    """
    if isinstance(average, Ensemble):
        if average.weights == "failures":  # its members have an order
            return average
        return dataclasses.replace(average, members=tuple(sorted(average)))
    return {name: float(weight) for name, weight in sorted(average.items()) if weight != 0}


@dataclass(frozen=True)
class Cell:
    """A finished cell, or a pretrained backbone in the role of a cell."""

    artifact: Artifact

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def proof(self) -> Path:
        """The file that is written last."""
        return self.artifact.proof

    @cached_property
    def meta(self) -> dict[str, Any]:
        if not self.artifact.has(CELL):
            return {}
        return json.loads(self.artifact.checked(CELL).read_text("utf-8"))

    @property
    def entries(self) -> list[Entry]:
        """The models to evaluate, with the cell's name in place of `SELF`."""
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
        """Number of optimizer steps; 0 for a mix, a fitted head or a backbone."""
        if not self.artifact.has(HISTORY):
            return 0
        history = json.loads(self.artifact.checked(HISTORY).read_bytes())
        return int(history[-1].get("step", 0))

    @property
    def train_seconds(self) -> float:
        """Seconds of its training, since its last checkpoint if it was interrupted; 0 for a mix and
        for weights from elsewhere."""
        return float(self.meta.get("train_seconds", 0))

    @property
    def backbone(self) -> str:
        """Name of the cell whose backbone it shares, or its own name."""
        return self.meta.get("backbone") or self.name

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the state dict, on the CPU. Raises ValueError if its file was altered."""
        return load_file(self.artifact.checked(tensors.WEIGHTS))

    def tensors(self, *names: str) -> list[torch.Tensor]:
        """Returns the named tensors of the state dict, on the CPU, without reading others."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return [file.get_tensor(name) for name in names]

    def shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor of the state dict, without reading the tensor."""
        with safe_open(self.artifact.checked(tensors.WEIGHTS), framework="pt") as file:
            return file.get_slice(name).get_shape()

    def reference(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of a cell that an ensemble names as its reference; see `Gated`."""
        return load_file(self.artifact.checked(tensors.REFERENCE))

    def prompt(self) -> torch.Tensor | None:
        """Returns the input prompt [3, H, W] of a visual-prompt cell, or None."""
        if not self.artifact.has(tensors.PROMPT):
            return None
        return load_file(self.artifact.checked(tensors.PROMPT))["prompt"]


def find(store: Store, name: str) -> Cell | None:
    """Returns the finished cell, pretrained backbone or snapshot of this name, or None.

    Raises DamagedFile for an invalid name, such as one with a slash.
    """
    if not is_name(name):
        raise DamagedFile(f"{name!r:.100} cannot be the name of a cell in {store.root}")
    for kind in KINDS:
        if store.files.has(f"{kind}/{name}/{MARKER}"):
            return Cell(Artifact(store.root / kind / name))
    return None


def write_cell(
    folder: Path,
    recipe: Recipe,
    made: Export | Gated | Sequence[Entry],
    backbone: str,
    description: Mapping[str, Any],
) -> None:
    """Writes what a method made into a folder: a trained cell, or one without weights.

    backbone: name of the base model's backbone. description: the head's classes, the model's
    image transform and, of a trained cell, the seconds of its training. Raises ValueError for
    anything else, and unless exactly one entry is the headline, the method's row in tables.
    """
    entries, shared = made, None
    if isinstance(made, Export):
        tensors.save(made.state, folder / tensors.WEIGHTS)
        if made.prompt is not None:
            tensors.save({"prompt": made.prompt}, folder / tensors.PROMPT)
            cell = f"{recipe.method.name} on {recipe.downstream}"
            log.info("%s has an input prompt; timm loads only the weights", cell)
        entries, shared = [Entry({SELF: 1.0})], backbone if made.shares_backbone else None
    elif isinstance(made, Gated):
        tensors.save(made.reference, folder / tensors.REFERENCE)
        entries = [Entry(Ensemble(made.members, "failures", SELF))]
    if not (isinstance(entries, Sequence) and all(isinstance(entry, Entry) for entry in entries)):
        raise ValueError(
            f"{recipe.method.module}: the method returned {type(made).__name__}: return "
            "engine.store.cells.Export(state_dict) from `export`, that or a list of Entry from "
            "`make`"
        )
    if (count := sum(entry.headline for entry in entries)) != 1:
        raise ValueError(
            f"method {recipe.method.name} marks {count} of its {len(entries)} entries as headline; "
            "set `headline` of exactly one `Entry`, which the table shows"
        )
    made_by = versions() | {"threads": str(recipe.threads), "ranks": str(ranks.world())}
    (folder / VERSIONS).write_text(json.dumps(made_by, indent=1), "utf-8")
    meta = {
        "method": recipe.method.name,
        "variant": recipe.method.variant,
        "downstream": recipe.downstream,
        "backbone": shared,
        "entries": [dataclasses.asdict(entry) for entry in entries],
        **description,
    }
    (folder / CELL).write_text(json.dumps(meta, indent=1), "utf-8")


def versions() -> dict[str, str]:
    """Returns the versions of packages that affect results, and the type of machine."""
    versions = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # the vector width affects rounding
        # Includes the build, which package metadata may omit; str() because it is a torch class.
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
