"""What `solve.distances` takes of a run, over labelled features that are given."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.otdd import solve
from engine.otdd.problems import Labelled
from engine.store.artifacts import Store


def run_of(
    sets: Mapping[str, Labelled], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], SimpleNamespace]:
    """Names of the sets in the order in which they are released, and the run."""
    released: list[str] = []

    class Sets(dict):
        classes = tuple("abcd")
        release = staticmethod(released.append)

    def stored(run, cell, labelled) -> torch.Tensor:
        return sets[labelled.name].features

    def key_of(run, cell, labelled) -> dict[str, str]:
        return {"model": cell, "pack": labelled.name}

    monkeypatch.setattr(solve.features, "stored", stored)
    monkeypatch.setattr(solve.features, "key_of", key_of)
    return released, SimpleNamespace(
        sets=Sets({name: SimpleNamespace(name=name, labels=s.labels) for name, s in sets.items()}),
        base="base",
        device=torch.device("cpu"),
        recipe=SimpleNamespace(model=SimpleNamespace(name="model")),
        store=Store(folder),
    )
