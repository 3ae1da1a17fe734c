"""`rib recipes` and `rib completion`: list recipes; write a script that completes names."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path

import yaml

from engine.commands.arguments import COMMANDS, build_parser
from engine.recipe import campaigns, catalogue
from engine.recipe.campaigns import methods_of, recipe_names
from engine.recipe.overrides import flat, over, parsed
from engine.recipe.resolve import load_recipe

WIDTH = 100
NO_SPACE = """
_rib() {
  _shtab_rib "$@"
  [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace  # the value follows
}
complete -o bashdefault -F _rib rib"""


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
    grid = campaigns.read_campaign(campaign)
    lines = [about(catalogue.path_of("campaigns", campaign)), ""]
    for name in methods_of(campaign):
        values = over(layer for _, layer in grid.rows[name])
        settings = yaml.safe_dump(values, default_flow_style=True, width=1000).strip()
        lines.append(f"  {name:<24}{grid.title(name):<20}{settings[1:-1]}".rstrip())
    return "\n".join(lines)


def complete(arguments: argparse.Namespace) -> None:
    """Print a script that contains the current names, so it starts no program."""
    import shtab

    cell = load_recipe("emoji/ewc")
    benchmark = load_recipe("imagenet_rib", parsed([{"model": cell.model.name}]))
    campaigns, models = recipe_names("campaigns"), recipe_names("models")
    sets = list(dict.fromkeys([*cell.dataset.known, *benchmark.dataset.known]))
    words = {name: campaigns for name in ("name", "names", "campaign", "source")}
    words |= {"model": models, "models": models, "set": sets, "sets": sets, "downstream": sets}
    words |= {"dataset": recipe_names("datasets"), "method": recipe_names("methods")}
    words["overrides"] = [f"{key}=" for key in flat(dataclasses.asdict(cell))]
    whole, commands = build_parser(tuple(COMMANDS))
    next(each for each in whole._actions if each.choices).help = ""  # else hidden, as in `--help`
    for name, command in commands.items():
        for action in command._actions:
            action.choices = action.choices or words.get(action.dest)
            if name == "sweep" and action.dest in ("name", "overrides"):
                action.choices = [*recipe_names(), *words[action.dest]]
            if name == "train" and action.dest == "words":
                action.choices = [*recipe_names(), *words["overrides"]]
    shell = arguments.shell
    print(shtab.complete(whole, shell=shell) + (NO_SPACE if shell == "bash" else ""))
