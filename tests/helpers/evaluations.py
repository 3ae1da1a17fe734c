"""Evaluations of eight models over the drawn shapes, which tests count and stop."""

import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engine.cells.build import Builder
from engine.evaluation import bank, passes
from engine.store import cells, pending
from helpers.grids import CLASSES, COPIES, SETS, UNFINISHED, VIT, Grid, images, labels, reference
from helpers.twins import assert_near
from loaders.batches import Resident

State = dict[str, torch.Tensor]
SET, IMAGES = "outline", 35
BATCH = 8  # as `grids` evaluates: four whole batches and one of three


@pytest.fixture(scope="module")
def mixes(grid) -> list[cells.Mix]:
    """Five models with weights of their own, the frozen backbone's two, and a prompt."""
    builder = grid.builder()
    base, tuned = builder.base.name, builder.cell("fine_tune").name
    prompt, probe = builder.cell("visual_prompt").name, builder.cell("linear_probe").name
    wise = [{base: 1 - a, tuned: a} for a in (0.2, 0.4, 0.6, 0.8)]
    return [*wise, {tuned: 1.0}, {prompt: 1.0}, {base: 1.0}, {probe: 1.0}]


@pytest.fixture(scope="module")
def expected(grid, mixes) -> list:
    """Each mix's predictions from one undisturbed evaluation."""
    return tables(grid.builder(), mixes)


@pytest.fixture
def fresh(grid, mixes, tmp_path) -> Grid:
    """The same cells and packs; nothing is evaluated."""
    for kind in ("packs", "store/weights", "store/cells", "store/features"):
        shutil.copytree(grid.runs / kind, tmp_path / "runs" / kind, ignore=UNFINISHED)
    return Grid(grid.folder, tmp_path / "runs", grid.device)


@pytest.fixture
def small_slices(monkeypatch) -> int:
    """Slices of two batches: three of them."""
    monkeypatch.setattr(pending, "SLICE", 2 * BATCH)
    return 3


def tables(
    builder: Builder,
    averages: Sequence[cells.Average],
    names: Sequence[str] = (SET,),
    split: str = "all",
) -> list:
    """Prediction tables of sets for each average, computed now where they were not before."""
    passes.evaluate(builder, averages, names, split)
    places = [(average, name) for average in averages for name in names]
    return [pq.read_table(passes.predicted(builder, *each, split)) for each in places]


def same(actual: list, expected: list) -> bool:
    """Whether tables agree bit for bit."""
    return all(a.equals(b) for a, b in zip(actual, expected, strict=True))


def average(states: Sequence[State], shares: Sequence[float]) -> State:
    """In float64; integers are the first state's."""
    return {
        name: torch.stack(
            [w * state[name].double() for w, state in zip(shares, states, strict=True)]
        ).sum(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def by_timm(
    grid: Grid,
    name: str,
    state: State,
    prompt: torch.Tensor | None = None,
    *,
    arch: str = VIT,
    mask: str = "present",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (float64 [N, 5]; -inf: not a class of the set) and labels [N] of a whole set."""
    index = np.arange(len(SETS[name]) * COPIES)
    x = images(grid, name, index, arch) + (0 if prompt is None else prompt.double())
    with torch.no_grad():
        logits = reference(state, arch)(x)
    if mask == "present":
        logits[:, [k for k, shape in enumerate(CLASSES) if shape not in SETS[name]]] = -torch.inf
    return logits, labels(grid, name, index)


def check_predictions(table: pa.Table, logits_NC: torch.Tensor, truth_N: torch.Tensor) -> None:
    """The columns of stored predictions from logits (-inf: not a class of the set) and labels."""
    p_NC, top1_N = logits_NC.softmax(1), logits_NC.argmax(1)
    own_N1 = truth_N[:, None]
    rival_N = logits_NC.scatter(1, own_N1, -torch.inf).amax(1)
    expected = {
        "p_top1": p_NC.amax(1),
        "p_true": p_NC.gather(1, own_N1)[:, 0],
        "margin": logits_NC.gather(1, own_N1)[:, 0] - rival_N,
    }
    assert table["label"].to_pylist() == truth_N.tolist()
    assert table["top1"].to_pylist() == top1_N.tolist()
    for name, values in expected.items():
        actual = torch.tensor(table[name].to_numpy())
        assert_near(actual, values, rtol=2e-4, atol=2e-5, name=name)
    right = table["margin"].to_numpy() > 0
    assert right.tolist() == (top1_N == truth_N).tolist()


def room_for_models(grid: Grid, mixes: list[cells.Mix], count: int) -> float:
    """Free bytes with which a bank holds `count` models of one or two parents."""
    name = next(iter(mixes[4]))
    size = (grid.runs / "store" / "cells" / name / "weights.safetensors").stat().st_size
    return (count + 4 + 0.5) * size / bank.WEIGHTS_SHARE


class Counted:
    """Images read and models loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.models = 0, 0
        batches, load = Resident.batches, bank.load

        def counted_batches(source: Resident, positions) -> Iterator:
            for batch in batches(source, positions):
                self.images += len(batch)
                yield batch

        def counted_load(net, run, mixes) -> dict:
            loaded = load(net, run, mixes)
            self.models += len(loaded)
            return loaded

        monkeypatch.setattr(Resident, "batches", counted_batches)
        monkeypatch.setattr(bank, "load", counted_load)
