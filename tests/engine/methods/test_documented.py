"""docs/methods.md has a row for each method on its needs and costs, as the method itself says."""

from pathlib import Path

import pytest

from engine import recipe
from engine.methods.base import Derived
from engine.recipe import modules

DOCUMENT = Path(__file__).parents[3] / "docs" / "methods.md"
OF_CLIP = ("flyp", "carot", "tracer", "lipsum_ft")
TITLES = {"linear_probe": "LP", "fine_tune": "FT", "ewc": "EWC", "lwf": "LwF"}


def table() -> dict[str, list[str]]:
    """The cells of each row of the section on needs, by the recipe's name."""
    section = DOCUMENT.read_text("utf-8").split("## Needs and costs\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def test_every_method_has_a_row():
    assert table().keys() == set(recipe.names("methods"))


@pytest.mark.parametrize("name", recipe.names("methods"))
def test_a_row_says_what_the_method_asks_for(name):
    campaign = "imagenet_rib_clip" if name in OF_CLIP else "emoji"
    options = recipe.load(f"{campaign}/fine_tune", recipe.parsed([f"method={name}"])).method
    method = modules.find(options.module).Method(options)
    _, needs, passes, _, choices = table()[name]
    assert needs.removesuffix(", twice") == ", ".join(TITLES[each] for each in options.needs)
    assert passes == ("-" if isinstance(method, Derived) else f"{options.passes:g}")
    assert all(hasattr(options, key.strip("` ")) for key in choices.split(",") if key)
