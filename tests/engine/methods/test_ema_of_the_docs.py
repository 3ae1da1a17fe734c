"""The method that docs/methods.md shows as a user's file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from grids import grid, prepared, same, trained
from interruptions import EVERY_STEP, interrupted, resumed

__all__ = ["grid"]
PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Its files as they are on the page; `method=` takes the path."""
    for name in ("ema.py", "ema.yaml"):
        (block,) = re.findall(rf"^```\w+\n# {name}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        (tmp_path / name).write_text(block)
    return f"method={tmp_path / 'ema.yaml'}"


def test_its_model_is_the_moving_average_of_the_weights(grid, recipe):
    case = prepared(grid, recipe, "method.decay=0.6")
    expected = {name: tensor.clone() for name, tensor in case.method.net.state_dict().items()}
    states = trained(case)
    for state in states:
        expected = {name: 0.6 * mean + 0.4 * state[name] for name, mean in expected.items()}
    assert len(states) == 6
    torch.testing.assert_close(dict(case.method.export().state), expected)


def test_an_interrupted_average_goes_on(grid, recipe, tmp_path):
    _, plain = grid.build(recipe)
    again = (recipe, f"runs={tmp_path / 'runs'}")
    interrupted(grid.builder(EVERY_STEP, *again), 3)
    cell, steps = resumed(grid, *again)
    assert steps == [4, 5, 6]
    assert same(cell.state(), plain.state())
