"""What users type is listed: a key, an option or a flag is added, renamed or removed on purpose."""

import dataclasses
from pathlib import Path

from engine.commands.arguments import COMMANDS, build_parser
from engine.recipe import extras, kinds
from engine.recipe.campaigns import OF_GRID
from engine.recipe.kinds import KINDS
from engine.recipe.methods import METHODS
from engine.recipe.overrides import flat
from engine.recipe.schema import MethodRecipe, Recipe

LIST = Path(__file__).with_name("frozen_names.txt")


def names() -> list[str]:
    """Keys of recipes and of campaigns, options of methods, of kinds of datasets and of
    extras, and commands' arguments."""
    method = {field.name for field in dataclasses.fields(MethodRecipe)}
    listed = {f"key {key}" for key in (*flat(dataclasses.asdict(Recipe())), *OF_GRID)}
    for name in METHODS.names():
        fields = dataclasses.fields(METHODS.planned({"module": name}))
        listed |= {f"{name} method.{field.name}" for field in fields if field.name not in method}
    for name in KINDS.names():
        listed |= {
            f"{name} dataset.{option}" for option in kinds.options_of(KINDS.find(name).Recipe())
        }
    for name in extras.names():
        listed |= {f"{name} extras.{name}.{option}" for option in extras.complete({name: {}})[name]}
    _, commands = build_parser([*COMMANDS])
    for name, command in commands.items():
        for action in command._actions[1:]:  # argparse has no public way; the first is --help
            listed |= {f"rib {name} {word}" for word in action.option_strings or [action.dest]}
    return sorted(listed)


def test_every_key_option_and_flag_is_listed():
    listed, found = LIST.read_text(encoding="utf-8").splitlines(), names()
    changes = [f"+ {line}" for line in found if line not in listed]
    changes += [f"- {line}" for line in listed if line not in found]
    assert not changes, "\n".join([f"if meant, add (+) or remove (-) in {LIST}:", *changes])
    assert listed == found, f"{LIST} is not sorted"
