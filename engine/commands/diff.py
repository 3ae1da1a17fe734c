"""`rib diff`: compare two finished campaigns on the images they share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import refuse_overwriting, report
from engine.errors import CampaignError
from engine.machine import first_line

if TYPE_CHECKING:
    import pandas

    from engine.campaigns.differences import Difference

LONGEST = 40  # characters shown of a value


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "diff", help="compare settings, versions and numbers of two campaigns"
    )
    parser.add_argument("first", metavar="A", help="name or folder of a finished campaign")
    parser.add_argument("second", metavar="B", help="name or folder of another")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="overrides of both campaigns, if given by name",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="file for the numbers of every dataset (default: none)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite --csv")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.csv:
        refuse_overwriting(arguments.csv, arguments.force, is_folder=False)
    first_line.show(f"reading {arguments.first} and {arguments.second}")
    sides = []
    for name in (arguments.first, arguments.second):
        found = report.finished(name, arguments.overrides)
        if len(found) > 1:
            raise CampaignError(f"{name} has {len(found)} models: give the folder of one")
        sides += found
    first, second = sides
    from engine.campaigns import differences
    from engine.measures import paired
    from engine.measures.tables import write_csv

    print(f"A  {first.place.campaign}\nB  {second.place.campaign}\n")
    print(_listed("settings", differences.settings(first.plan, second.plan)))
    print(_listed("versions", differences.versions(first, second)))
    same = differences.same_packs(first.record, second.record)
    table = paired.cells(first.evaluations, second.evaluations, same)
    if table.empty:
        raise CampaignError(
            "A and B share no method and dataset with the same images, so there is nothing to "
            "compare"
        )
    sets = set(first.record.sets) & set(second.record.sets)
    titles = {**second.record.methods, **first.record.methods}
    print(text(paired.mean_improvements(table, sets), table, titles))
    if arguments.csv:
        write_csv(arguments.csv, table)
        print(f"\ntable  {arguments.csv.resolve()}")


def text(means: pandas.DataFrame, table: pandas.DataFrame, titles: dict[str, str]) -> str:
    """mRI of both campaigns on what they share, one row per method."""
    from engine.report import console

    by_set = table.drop_duplicates("evaluated_on").set_index("evaluated_on")["images"]
    images = ", ".join(f"{name} {count:,}" for name, count in by_set.items())
    title = (
        "mRI in points over the columns, datasets and images that both have\n"
        f"(images: {images}); `rib report A B --out DIR` gives intervals"
    )
    rows = []
    for row in means.to_dict("records"):
        settings = dict.fromkeys(str(row[key]) for key in ("setting_a", "setting_b") if row[key])
        name = " | ".join([titles.get(str(row["method"]), str(row["method"])), *settings])
        numbers = [f"{row[key]:+.1f}" for key in ("mri_a", "mri_b", "change")]
        rows.append([name, str(row["columns"]), *numbers])
    return console.text(title, ("", "columns", "A", "B", "change"), rows)


def _listed(title: str, found: Sequence[Difference]) -> str:
    if not found:
        return f"{title}: the same\n"
    lines = [f"  {each.name}: {_short(each.first)} | {_short(each.second)}" for each in found]
    return "\n".join([f"{title} (A | B)", *lines, ""])


def _short(value: object) -> str:
    shown = "-" if value is None else f"{value}"
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
