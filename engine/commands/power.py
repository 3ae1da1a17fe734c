"""`rib power`: how many seeds and images it takes to separate two rows of a table."""

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
IMAGES = (1, 2, 4, 10)  # multiples of the campaign's images
REMEDY = "run it with probe=1 or seeds=3, or give --seed-error POINTS"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "power",
        help="compute the seeds and images that separate two rows",
        description="Compute the smallest difference in mRI that a campaign detects between two "
        "rows, by the number of seeds and images. Standard deviations come from a finished "
        "campaign with a seed probe or several seeds, or from your options.",
    )
    parser.add_argument("name", nargs="?", metavar="RUN", help="name or folder of a campaign")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the campaign's overrides"
    )
    parser.add_argument(
        "--points", type=float, default=1.0, help="difference in mRI, in points (default: 1)"
    )
    parser.add_argument(
        "--power", type=float, default=0.8, help="probability of detection (default: 0.8)"
    )
    parser.add_argument(
        "--image-error", type=float, metavar="POINTS",
        help="standard deviation over images of a difference in mRI (default: RUN's)",
    )  # fmt: skip
    parser.add_argument(
        "--seed-error",
        type=float,
        metavar="POINTS",
        help="standard deviation over seeds, of one training (default: RUN's)",
    )
    parser.add_argument("--rows", type=int, help="compared rows (default: RUN's, or 10)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.svg",
        help="file for a plot of the differences (default: none)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    points, power, out = arguments.points, arguments.power, arguments.out
    if points <= 0 or not 0.5 <= power < 1:
        raise ValueError(
            f"--points {points} --power {power}: points must be above 0, and power from 0.5 to "
            "below 1"
        )
    if out is not None:
        if out.suffix != ".svg":
            raise ValueError(f"--out {out}: name a file that ends in .svg")
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
    """The smallest detectable differences, and the seeds and images that detect `points`."""
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
    found = ", or ".join(dict.fromkeys(ways)) or "more than 100 seeds with ten times as many images"
    return console.text(
        f"{title}\nSmallest difference in mRI, in points, that is significant in {power:.0%} of "
        f"campaigns between two of {errors.rows} rows (5% level, corrected for "
        f"{errors.comparisons} comparisons). A difference has a standard deviation of "
        f"{errors.images:.2f} points over images and {errors.seeds:.2f} over seeds of one "
        f"training.\nTo detect {points:g} point{'s' * (points != 1)}: {found}.",
        heads,
        rows,
    )


def picture(title: str, errors: Errors, power: float) -> Figure:
    """The smallest detectable differences as curves over the number of seeds."""
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
    return Figure(
        "power", title, "Smallest detectable differences by seeds and images.", data, spec
    )


def _of_models(arguments: argparse.Namespace) -> Sequence[tuple[str, Errors]]:
    """The standard errors for each pretrained model of a campaign, or the given ones."""
    from engine.measures import power
    from engine.measures.power import Errors

    image, seed, count = arguments.image_error, arguments.seed_error, arguments.rows
    if arguments.name is None:
        if image is None or seed is None:
            raise ValueError("give a finished campaign, or --image-error and --seed-error")
        errors = Errors(image, seed, 10 if count is None else count)
        return [("From the given standard deviations.", _checked(errors))]
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
                    f"{run.record.name} trained each cell once, or has a single row, so its error "
                    f"over seeds is unknown: {REMEDY}"
                )
            errors = Errors(
                errors.images if image is None else image, errors.seeds, count or errors.rows
            )
            found.append((f"{model}, {run.record.name}", _checked(errors)))
    return found


def _checked(errors: Errors) -> Errors:
    if errors.rows < 2 or min(errors.images, errors.seeds) < 0:
        raise ValueError(
            "give --rows of at least 2, and --image-error and --seed-error of at least 0"
        )
    return errors
