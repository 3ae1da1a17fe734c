"""Writes `recipes/architectures.json`, from which models of `recipes/models` are planned.

It holds timm's config of each architecture, and counts of its networks. `core_share` is measured on
this machine; the rest is the same everywhere. Run it after a change of a model's recipe or of timm.
"""

from __future__ import annotations

import json
from typing import Any

from engine.cost.flops import count_network
from engine.cost.work import Network, form_of
from engine.model_files.architectures import STORED, installed_config
from engine.recipe.campaigns import recipe_names
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe


def model_recipes() -> list[ModelRecipe]:
    """The recipes of the models with weights that anybody can download."""
    names = [name for name in recipe_names("models") if name != "file"]
    overrides = [parsed([f"model={name}"]) for name in names]
    return [load_recipe("imagenet_rib/fine_tune", each).model for each in overrides]


def main() -> None:
    stored: dict[str, Any] = {}
    for model in model_recipes():
        config = installed_config(model.arch)
        row = stored.setdefault(model.arch, {"config": config, "networks": {}})
        counts = vars(Network(*count_network(model)))
        counts["core_share"] = round(counts["core_share"], 2)
        row["networks"][form_of(model)] = counts
    rows = (f"{json.dumps(arch)}: {json.dumps(row)}" for arch, row in sorted(stored.items()))
    STORED.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
