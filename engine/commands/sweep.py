"""`rib sweep`: train a row in every combination of values, as the jobs of a campaign."""

from __future__ import annotations

import argparse

from engine import recipe
from engine.commands import campaign


def run(arguments: argparse.Namespace) -> None:
    arguments.name, arguments.overrides = recipe.of_sweep(arguments.name, arguments.overrides)
    page = campaign.start(arguments)
    if page is not None:
        print(f"table   {page.with_name('tables').resolve() / 'sweep-configurations.csv'}")
