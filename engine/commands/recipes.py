"""`rib recipes`: list campaigns, models, datasets and methods, or a campaign's rows."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import yaml

from engine.recipe import campaigns, catalogue
from engine.recipe.campaigns import methods_of, recipe_names
from engine.recipe.overrides import over

WIDTH = 100


def run(arguments: argparse.Namespace) -> None:
    print(_rows(arguments.name) if arguments.name else everything())


def everything() -> str:
    """The names of all recipes by group, with a description of each campaign."""
    lines = ["campaigns (rib recipes CAMPAIGN lists the rows of one)"]
    for name in recipe_names("campaigns"):
        said = about(catalogue.path_of("campaigns", name))
        lines.append(f"  {name:<24}{textwrap.shorten(said, WIDTH - 26, placeholder=' ...')}")
    groups = {group: recipe_names(group) for group in ("models", "datasets", "methods")}
    for group, names in (groups | {"other recipes": catalogue.names()}).items():
        lines += ["", group, textwrap.indent(textwrap.fill(", ".join(names), WIDTH - 2), "  ")]
    return "\n".join(lines)


def about(file: Path) -> str:
    """The comment at the head of a recipe's file, up to its first command or empty line."""
    text = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        text.append(line.removeprefix("# "))
    return " ".join(text)


def _rows(campaign: str) -> str:
    grid = campaigns.read(campaign)
    lines = [about(catalogue.path_of("campaigns", campaign)), ""]
    for name in methods_of(campaign):
        values = over(layer for _, layer in grid.rows[name])
        settings = yaml.safe_dump(values, default_flow_style=True, width=1000).strip()
        lines.append(f"  {name:<24}{grid.title(name):<16}{settings[1:-1]}".rstrip())
    return "\n".join(lines)
