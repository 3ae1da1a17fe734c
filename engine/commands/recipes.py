"""`rib recipes`: the names of campaigns, models, data sets, methods and recipes."""

from __future__ import annotations

import argparse

from engine import recipe


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("recipes", help="list campaigns, models, methods and data sets")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    for group in ("campaigns", "models", "datasets", "methods"):
        print(f"{group}: {', '.join(recipe.names(group))}")
    print(f"recipes: {', '.join(recipe.names())}")
