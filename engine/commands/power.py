"""`rib power`: the seeds and images that separate two rows of a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import refuse_overwriting
from engine.machine import first_line

if TYPE_CHECKING:
    from engine.measures.power import Errors
    from engine.report.section import Figure

SEEDS = (1, 2, 3, 5, 10)
IMAGES = (1, 2, 4, 10)  # times as many
REMEDY = "run it with probe=1 or seeds=3, or give --seed-error POINTS"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "power",
        help="the seeds and images that separate two rows by so many points",
        description="How far apart two rows must be in mRI to be found different in most "
        "campaigns, by the number of seeds and images: from a finished campaign with a seed probe "
        "or several seeds, or from standard deviations that you give.",
    )
    parser.add_argument("name", nargs="?", metavar="RUN", help="a campaign's name or its folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--points", type=float, default=1.0, help="of mRI; default: 1")
    parser.add_argument("--power", type=float, default=0.8, help="share found; default: 0.8")
    parser.add_argument(
        "--image-error", type=float, metavar="POINTS",
        help="standard deviation over images of a difference in mRI between two rows",
    )  # fmt: skip
    parser.add_argument(
        "--seed-error", type=float, metavar="POINTS", help="the same over seeds, of one training"
    )
    parser.add_argument("--rows", type=int, help="rows that are compared; default: 10")
    parser.add_argument("--out", type=Path, metavar="FILE.svg", help="draw it into this file")
    parser.add_argument("--force", action="store_true", help="write over --out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    points, power, out = arguments.points, arguments.power, arguments.out
    if points <= 0 or not 0.5 <= power < 1:
        raise ValueError("--points must be above 0, --power from 0.5 to below 1")
    if out is not None:
        if out.suffix != ".svg":
            raise ValueError(f"--out {out}: the picture is an SVG; name a file that ends in .svg")
        refuse_overwriting(out, arguments.force, is_folder=False)
    named = _of_models(arguments)
    from engine.machine.files import write_atomic

    for title, errors in named:
        print(text(title, errors, points, power))
    if out is not None:
        import vl_convert

        from engine.report import charts

        spec = charts.drawn(picture(*named[0], power), 480) | {"config": charts.CONFIG}
        write_atomic(out, vl_convert.vegalite_to_svg(spec).encode())
        print(f"\n{out}")


def text(title: str, errors: Errors, points: float, power: float) -> str:
    """The least differences by seeds and images, and what separates so many points."""
    from engine.report import console

    heads = ["training seeds", *(f"{k}x images" if k > 1 else "these images" for k in IMAGES)]
    rows = [
        [
            str(seeds) if seeds > 1 else "1 and a probe",
            *(f"{errors.difference(seeds, k, power):.2f}" for k in IMAGES),
        ]
        for seeds in SEEDS
    ]
    needed = [(k, errors.needed(points, k, power)) for k in IMAGES]
    ways = [
        f"{seeds if seeds > 1 else 'a seed probe'}{' seeds' * (seeds > 1)} with "
        f"{f'{k} times as many' if k > 1 else 'these'} images"
        for k, seeds in needed
        if seeds is not None
    ]
    found = ", or ".join(dict.fromkeys(ways)) or "more than 100 seeds and ten times as many images"
    return console.text(
        f"{title}\nPoints of mRI by which two of {errors.rows} rows must differ to be found "
        f"different in {power:.0%} of campaigns (5%, corrected for {errors.comparisons} "
        f"comparisons). A difference between two rows has a standard deviation of "
        f"{errors.images:.2f} points over images and {errors.seeds:.2f} over seeds, of one "
        f"training.\n{points:g} point{'s' * (points != 1)}: {found}.",
        heads,
        rows,
    )


def picture(title: str, errors: Errors, power: float) -> Figure:
    """The same as curves over the number of seeds."""
    import pandas

    from engine.report import charts
    from engine.report.section import Figure

    rows = [
        (
            seeds,
            f"{k} times as many" if k > 1 else "these images",
            errors.difference(seeds, k, power),
        )
        for k in IMAGES
        for seeds in range(1, SEEDS[-1] + 1)
    ]
    data = pandas.DataFrame(rows, columns=["seeds", "images", "least_difference_pts"])
    ticks = {float(k): str(k) for k in SEEDS}
    spec = charts.curve(
        data, "seeds", "least_difference_pts", "images", x_title="training seeds", ticks=ticks
    )
    return Figure("power", title, "Least differences by seeds and images.", data, spec)


def _of_models(arguments: argparse.Namespace) -> Sequence[tuple[str, Errors]]:
    """The errors of each pre-trained model of a campaign, or those that are given."""
    from engine.measures import power
    from engine.measures.power import Errors

    image, seed, count = arguments.image_error, arguments.seed_error, arguments.rows
    if arguments.name is None:
        if image is None or seed is None:
            raise ValueError("name a finished campaign, or give --image-error and --seed-error")
        errors = Errors(image, seed, 10 if count is None else count)
        return [("From the numbers given.", _checked(errors))]
    first_line.show(f"reading the predictions of {arguments.name}")
    from engine.commands.report import finished
    from engine.report.results import of_campaign

    found = []
    for run in finished(arguments.name, arguments.overrides):
        results = of_campaign(run)
        for model in results.models:
            arms = results.ranked(model)["arm"].tolist()
            errors = power.errors(results.grid, arms, over_seeds=seed)
            if errors is None:
                raise ValueError(
                    f"{run.record.name} has one training of each of its cells, or a single row, "
                    f"and says nothing of the error over seeds: {REMEDY}"
                )
            errors = Errors(
                errors.images if image is None else image, errors.seeds, count or errors.rows
            )
            found.append((f"{model}, {run.record.name}", _checked(errors)))
    return found


def _checked(errors: Errors) -> Errors:
    if errors.rows < 2 or min(errors.images, errors.seeds) < 0:
        raise ValueError("--rows must be 2 or more, --image-error and --seed-error 0 or more")
    return errors
