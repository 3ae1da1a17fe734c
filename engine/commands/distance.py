"""`rib distance`: distances between datasets in a model's features: table, CSV and heat map."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from engine.cells.plan_cell import plan_cell
from engine.did_you_mean import nearest
from engine.machine.terminal import announce
from engine.report import console
from engine.store.use import in_use
from loaders.files.durable import short_digest
from loaders.files.root import Root


def run(arguments: argparse.Namespace) -> None:
    cell = plan_cell(arguments.campaign, arguments.overrides)
    resolved, every = cell.recipe, cell.recipe.dataset.evaluated_sets
    names = arguments.sets or every
    for name in names:  # before the slow imports
        if name not in every:
            raise ValueError(f"{arguments.campaign} has no dataset {name!r}{nearest(name, every)}")
    announce(f"reading the sets of {arguments.campaign}")
    from engine.cells.build import Builder  # here, because these import torch
    from engine.machine import ranks
    from engine.otdd import distance_matrix, problems, solve
    from engine.report import page
    from engine.report.sections import distances as section

    given = {"eps": arguments.eps, "samples": arguments.samples, "debias": not arguments.biased}
    options = problems.DistanceOptions(**{k: v for k, v in given.items() if v is not None})
    solve.check_names(names)  # before a model is made
    builder = Builder(cell, ranks.start(resolved.device))
    with in_use(builder.store):
        matrix = solve.distances(builder, names, options)
    # Campaigns can have different datasets of one name.
    packs = {name: builder.sets[name].pack.fingerprint for name in names}
    made_of = {"model": builder.base.backbone, "sets": names, "packs": packs}
    key = short_digest(made_of | {"options": dataclasses.asdict(options)})
    runs = Root(Path(resolved.runs))
    folder = runs.make(f"distance/{resolved.model.name}-{key}")  # raises if part of it is a link
    distance_matrix.write_csv(folder / "distances.csv", matrix)
    heading = f"Distances between datasets for {resolved.model.name}"
    files = ("distances.csv", "distances_pairs.csv")
    sections = [section.of_matrix(matrix)]
    path = page.write(
        folder / "index.html", sections, title="distances", heading=heading, files=files
    )
    ranks.stop()
    # Columns have the numbers of the rows.
    rows = [
        [f"{number:>3} {name}", *("–" if value != value else f"{value:.4g}" for value in row)]
        for number, (name, row) in enumerate(zip(matrix.names, matrix.values, strict=True), start=1)
    ]
    print(console.text("", ["", *map(str, range(1, len(rows) + 1))], rows))
    print(
        f"\n{matrix.certainty()}\n\nmatrix  {folder / 'distances.csv'}\n"
        f"pairs   {folder / 'distances_pairs.csv'}\npage    {path.resolve()}"
    )
