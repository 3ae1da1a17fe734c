"""`rib sweep`: train a row in every combination of values, as the jobs of a campaign."""

from __future__ import annotations

import argparse

from engine.commands import campaign
from engine.recipe.grid_keys import overrides_of_sweep


def run(arguments: argparse.Namespace) -> None:
    arguments.name, arguments.overrides = overrides_of_sweep(arguments.name, arguments.overrides)
    page = campaign.start(arguments)
    if page is not None:
        print(f"table   {page.with_name('tables').resolve() / 'sweep-configurations.csv'}")
