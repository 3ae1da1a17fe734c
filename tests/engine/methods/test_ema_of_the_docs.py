"""The method that docs/methods.md shows as a user's file."""

import re
from pathlib import Path

import torch

from helpers.grids import prepared, trained

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


def test_its_model_is_the_moving_average_of_the_weights(grid, tmp_path):
    """Its files as they are on the page; `method=` takes the path."""
    for name in ("ema.py", "ema.yaml"):
        (block,) = re.findall(rf"^```\w+\n# {name}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        (tmp_path / name).write_text(block)
    case = prepared(grid, f"method={tmp_path / 'ema.yaml'}", "method.decay=0.6")
    expected = {name: tensor.clone() for name, tensor in case.method.net.state_dict().items()}
    states = trained(case)
    for state in states:
        expected = {name: 0.6 * mean + 0.4 * state[name] for name, mean in expected.items()}
    assert len(states) == 6
    torch.testing.assert_close(dict(case.method.export().state), expected)
