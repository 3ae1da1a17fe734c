"""Snapshots: their steps, what training becomes beside them, and what they hold."""

import shutil
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.cells.build import SNAPSHOTS, Builder, Followed
from engine.recipe.methods import METHODS
from engine.training import loop
from engine.training.saving import Saving, TrainingProgress, snapshot_steps
from helpers.grids import CONV, Grid, prepared, same, weights
from helpers.interruptions import EVERY_STEP, Stopped, at_step, interrupted, steps_taken, stop


@given(st.integers(0, 40), st.integers(0, 10_000))
def test_steps_ascend_to_the_last_and_their_ratios_are_alike(count: int, total: int):
    steps = snapshot_steps(count, total)
    assert len(steps) == len(set(steps)) <= min(count, total)
    assert steps == sorted(steps)
    if count and total:
        assert steps[-1] == total
    if 0 < count <= 5 and total >= 100:
        assert len(steps) == count
    if count > 1 and total:
        assert steps[0] == 1
        ratio = total ** (1 / (count - 1))
        ideal = [ratio**k for k in range(count)]
        for step in steps:
            assert min(abs(step - exact) for exact in ideal) <= 0.5 + 1e-6 * step
        for exact in ideal:
            assert min(abs(step - exact) for step in steps) <= 0.5 + 1e-6 * exact


def runs_of(grid: Grid) -> str:
    """A store that no other module uses: cells are removed from it."""
    return f"runs={grid.runs.parent / 'with snapshots'}"


def followed(grid: Grid, *words: str) -> Builder:
    """A builder that trains its cell now, with three snapshots, of which the last is the cell."""
    builder = grid.builder(runs_of(grid), "train.snapshots=3", *words)
    method = builder.recipe.method.name
    builder.followed = Followed([builder.recipe], builder.recipe.dataset.sets)
    for kind in ("cells", SNAPSHOTS):
        for folder in (builder.store.root / kind).glob(f"{method}-*"):
            shutil.rmtree(folder)
    return builder


def by_step(builder: Builder) -> dict[int, dict[str, torch.Tensor]]:
    """Weights, and a prompt if there is one, of the method's snapshots on disk."""
    root, states = builder.store.root / SNAPSHOTS, {}
    for folder in sorted(root.glob(f"{builder.recipe.method.name}-*")):
        step = int(folder.name.rsplit("-step")[1].split("-")[0])
        states[step] = {k: t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}
    return states


CASES = [
    ("method=visual_prompt",),
    ("method=lwf", "train.accumulation=3"),
    (f"model.arch={CONV}", "train.freeze_batchnorm=false", "train.batch_size=5"),
]


@pytest.mark.parametrize("words", CASES, ids=lambda words: words[0])
def test_training_is_bit_equal_with_and_without_snapshots(grid, words):
    _, plain = grid.build(runs_of(grid), *words)
    before = weights(plain)
    builder = followed(grid, *words)
    cell = builder.build()
    assert cell.name == plain.name
    assert same(weights(cell), before)
    states = by_step(builder)
    assert list(states) == {6: [1, 2], 10: [1, 3]}[cell.steps]
    assert not same(*states.values())
    assert all(state.keys() - {"prompt"} == before.keys() for state in states.values())


@pytest.mark.parametrize("method", ["fine_tune", "lora"])
def test_a_snapshot_equals_a_run_that_stops_there(grid, monkeypatch, method):
    builder = followed(grid, f"method={method}")
    builder.build()
    at_step(monkeypatch, 2, stop)
    stopped = METHODS.find(builder.recipe.method.module).Method(builder.recipe.method)
    loop.prepare(stopped, builder)
    with loop.initialized(stopped, builder) as engine, pytest.raises(Stopped):
        loop.epochs(engine, stopped, builder)
    assert same(by_step(builder)[2], stopped.export().state)


def test_a_fitted_head_leaves_no_snapshot(grid):
    builder = followed(grid, "method=linear_probe")
    cell = builder.build()
    assert cell.steps == 0 and not by_step(builder)
    assert builder.build().name == cell.name


def test_a_resumed_training_leaves_the_snapshots_that_are_left(grid):
    """Step 1 before the interruption, step 2 after it."""
    builder = followed(grid)
    plain, expected = weights(builder.build()), by_step(builder)
    interrupted(followed(grid, EVERY_STEP), 1)
    assert list(by_step(builder)) == [1]
    assert same(weights(builder.build()), plain)
    actual = by_step(builder)
    assert list(actual) == [1, 2] and all(same(actual[step], expected[step]) for step in expected)


def test_a_checkpoint_beyond_a_snapshot_that_is_missing_is_not_taken(grid, monkeypatch):
    """A training without snapshots was interrupted, and its next attempt wants them."""
    builder = followed(grid)
    interrupted(grid.builder(runs_of(grid), EVERY_STEP), 3)
    pending = (builder.store.root / "pending").glob("*/step*")
    assert len(list(pending)) == 2, "of steps 2 and 3"
    steps = steps_taken(monkeypatch)
    builder.build()
    assert steps == list(range(1, 7)) and list(by_step(builder)) == [1, 2]


def test_a_write_that_fails_is_raised_when_training_ends(grid):
    method = prepared(grid).method

    def fail(step: int, export: object) -> None:
        raise OSError(f"no room at step {step}")

    failure = pytest.raises(OSError, match="no room at step 4")
    with failure, Saving([4], fail) as saving:
        for step in range(1, 7):
            saving.take(TrainingProgress(step), method)


def test_at_most_two_snapshots_wait_to_be_written(grid):
    method, taken, ahead = prepared(grid).method, [0], []

    def write(step: int, export: object) -> None:
        time.sleep(0.05)
        ahead.append(taken[0] - step)

    with Saving(range(1, 9), write) as saving:
        for step in range(1, 9):
            saving.take(TrainingProgress(step), method)
            taken[0] = step
    assert len(ahead) == 8 and max(ahead) <= 1


def test_a_copy_holds_what_was_there_and_not_what_comes(grid):
    method, exports = prepared(grid).method, {}
    expected = {name: tensor.clone() for name, tensor in method.export().state.items()}
    with Saving([1], lambda step, export: exports.update({step: export})) as saving:
        saving.take(TrainingProgress(1), method)
        with torch.no_grad():
            for parameter in method.net.parameters():
                parameter.zero_()
    assert same(exports[1].state, expected)
