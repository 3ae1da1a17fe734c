"""`rib sweep`: train a row in every combination of values, as the jobs of a campaign."""

from __future__ import annotations

import argparse

from engine.commands import campaign as campaign_command

DESCRIPTION = """\
Train one row of a campaign with every combination of values, on every downstream dataset.

  rib sweep emoji/ewc method.lam=0.1,1,10 optimizer.lr=1e-4,1e-3 seed=0,1,2

trains 3 x 2 variants with 3 seeds each. Commas separate values, except within brackets or
quotes: model.mean=[0.4,0.5,0.5] is one value. These keys can have several values:
optimizer.KEY, train.KEY, method.KEY of the row, dataset.shots, dataset.portion and seed.
downstream=A,B fine-tunes on these datasets only. Any other key=value applies to all variants.

Variants share packs, pretrained model, features, Fisher and LP-FT's probe, and reuse cells of
other campaigns. To resume an interrupted sweep, run the same command. The report's folder has
tables/sweep-variants.csv (one row per variant), accuracy.csv (one row per variant, downstream
dataset and dataset evaluated on) and, with several seeds, seeds.csv.\
"""


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sweep",
        help="train a row with every combination of values",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="CAMPAIGN/ROW", help="row of a campaign, such as emoji/ewc")
    parser.add_argument("overrides", nargs="*", metavar="key=A,B", help="key and its values")
    campaign_command.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe

    arguments.name, arguments.overrides = recipe.of_sweep(arguments.name, arguments.overrides)
    page = campaign_command.start(arguments)
    if page is not None:
        print(f"table   {page.with_name('tables').resolve() / 'sweep-variants.csv'}")
