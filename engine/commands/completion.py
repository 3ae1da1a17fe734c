"""`rib completion`: write a script that completes commands, options, names and keys in a shell."""

from __future__ import annotations

import argparse
import dataclasses

import shtab

from engine.commands.arguments import COMMANDS, build_parser
from engine.recipe.campaigns import recipe_names
from engine.recipe.overrides import flat, parsed
from engine.recipe.resolve import load_recipe

NO_SPACE = """
_rib() {
  _shtab_rib "$@"
  [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace  # the value follows
}
complete -o bashdefault -F _rib rib"""


def run(arguments: argparse.Namespace) -> None:
    print(script(arguments.shell))


def script(shell: str) -> str:
    """A script for bash, zsh or fish. It contains the current names, so it starts no program."""
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
    return shtab.complete(whole, shell=shell) + (NO_SPACE if shell == "bash" else "")
