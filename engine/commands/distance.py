"""`rib distance`: how far sets are apart in a model's features, as a table, CSV and heat map."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import nearest
from engine.machine import first_line
from engine.machine.files import short_digest
from loaders.root import Root

if TYPE_CHECKING:
    from engine.measures.distances import Matrix


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("distance", help="optimal transport distances between sets")
    parser.add_argument("sets", nargs="*", metavar="SET", help="default: all sets")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--campaign", default="emoji", help="whose sets and model (default: emoji)")
    parser.add_argument("--model", help="a model of recipes/models, in place of the campaign's")
    parser.add_argument("--eps", type=float, help="regularisation, of the mean cost")
    parser.add_argument("--absolute", action="store_true", help="eps in the units of the cost")
    parser.add_argument("--label-distance", help="gaussian | means | none")
    parser.add_argument("--lam-x", type=float, help="weight of the feature term")
    parser.add_argument("--lam-y", type=float, help="weight of the label term")
    parser.add_argument("--half", action="store_true", help="halve costs, as the reference does")
    parser.add_argument("--biased", action="store_true", help="leave the self terms in")
    parser.add_argument("--samples", type=int, help="at most so many of a set, seeded")
    parser.add_argument("--sample-seed", type=int, dest="seed", help="of the drawn samples")
    parser.add_argument("--tolerance", type=float, help="of the certified duality gap")
    parser.add_argument("--bracket", type=float, help="unregularised, to this relative width")
    parser.add_argument("--exact", action="store_true", help="unregularised, for small sets")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine.cells import cell_plan
    from engine.recipe import overrides

    of_model = overrides.of_mapping({"model": arguments.model} if arguments.model else {})
    given = [*arguments.overrides, *of_model]
    cell = cell_plan.resolve(arguments.campaign, given, run_users=False)
    resolved, every = cell.recipe, cell.recipe.dataset.evaluated_sets
    names = arguments.sets or every
    for name in names:  # before imports that take seconds
        if name not in every:
            raise ValueError(f"{name!r} is no set of {arguments.campaign}{nearest(name, every)}")
    first_line.show(f"reading the sets of {arguments.campaign}")
    from engine.cells.build import Builder
    from engine.machine import ranks
    from engine.measures import distances
    from engine.otdd import problems, solve
    from engine.report import page
    from engine.report.sections import distances as section

    given = {
        field.name: getattr(arguments, field.name, None)
        for field in dataclasses.fields(problems.DistanceOptions)
    }
    given |= {"relative": not arguments.absolute, "debias": not arguments.biased}
    options = problems.DistanceOptions(**{k: v for k, v in given.items() if v is not None})
    solve.check_names(names)  # before a model is made
    builder = Builder(cell, ranks.start(resolved.device))
    matrix = solve.distances(builder.run, names, options)
    # Sets of one name differ from campaign to campaign.
    packs = {name: builder.sets[name].pack.fingerprint for name in names}
    made_of = {"model": builder.base.backbone, "sets": names, "packs": packs}
    key = short_digest(made_of | {"options": dataclasses.asdict(options)})
    runs = Root(Path(resolved.runs))
    folder = runs.make(f"distance/{resolved.model.name}-{key}")  # of which nothing is a link
    distances.write_csv(folder / "distances.csv", matrix)
    heading = f"How far the sets are apart for {resolved.model.name}"
    files = ("distances.csv", "distances_pairs.csv")
    sections = [section.of_matrix(matrix)]
    path = page.write(
        folder / "index.html", sections, title="distances", heading=heading, files=files
    )
    ranks.stop()
    print(table(matrix))
    print(
        f"\n{matrix.certainty()}\n\nmatrix  {folder / 'distances.csv'}\n"
        f"pairs   {folder / 'distances_pairs.csv'}\npage    {path.resolve()}"
    )


def table(matrix: Matrix) -> str:
    """The matrix in the terminal. Columns are numbered as the rows are."""
    from engine.report import console

    rows = [
        [f"{number:>3} {name}", *("–" if value != value else f"{value:.4g}" for value in row)]
        for number, (name, row) in enumerate(zip(matrix.names, matrix.values, strict=True), start=1)
    ]
    return console.text("", ["", *map(str, range(1, len(rows) + 1))], rows)
