"""`rib sweep`: the variants of a row, every combination of values, as a campaign's jobs."""

from __future__ import annotations

import argparse

from engine.commands import campaign as campaign_command

DESCRIPTION = """\
Train one row of a campaign in every combination of values, on every downstream set.

  rib sweep emoji/ewc method.lam=0.1,1,10 optimizer.lr=1e-4,1e-3 seed=0,1,2

makes 3 x 2 variants, each trained with 3 seeds. Commas separate values, unless they stand in
brackets or quotes: model.mean=[0.4,0.5,0.5] is one value. These keys can have several:
optimizer.KEY, train.KEY, method.KEY of the row, dataset.shots, dataset.portion and seed.
downstream=A,B fine-tunes on these sets only. Any other key=value holds for all variants.

What variants share (packs, pre-trained model, features, Fisher, the probe of LP-FT) is made once,
cells that a campaign has trained are found, and a sweep that was interrupted goes on where it was.
Beside the report's page, tables/sweep-variants.csv has a row for each variant, accuracy.csv one
for each variant, set fine-tuned on and set evaluated on, and seeds.csv those of several seeds.\
"""


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sweep",
        help="run the variants of a row: values of keys, every combination",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="CAMPAIGN/ROW", help="as in emoji/ewc; `recipe=` may stand before it"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=A,B", help="values to combine")
    campaign_command.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe

    arguments.name, arguments.overrides = recipe.of_sweep(arguments.name, arguments.overrides)
    page = campaign_command.start(arguments)
    if page is not None:
        print(f"table   {page.with_name('tables').resolve() / 'sweep-variants.csv'}")
