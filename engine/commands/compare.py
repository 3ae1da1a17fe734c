"""`rib compare`: paired tests of campaigns, rows, cells, or tables of anybody's predictions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands import refuse_overwriting, report
from engine.errors import CampaignError
from engine.machine.terminal import announce
from loaders.files.names import one_line

if TYPE_CHECKING:
    import pandas

    from engine.campaigns.compared import CampaignDifference, Side
    from engine.recipe.overrides import Override

LONGEST = 40  # characters shown of a value
FEW = 20  # sources, the least that bench/comparisons.py simulates


def run(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        refuse_overwriting(arguments.csv, arguments.force, is_folder=False)
    announce(f"reading {', '.join(arguments.sides)}")
    sides = [find_side(name, arguments.overrides) for name in arguments.sides]
    for line in _settings([side for side in sides if side is not None]):
        print(line)
    table = compare(arguments.sides, sides)
    print(text(table))
    all_pass = True
    for row in table[table["set"] == ""].to_dict("records"):
        print(f"\n{verdict(row)}")
        if arguments.at_least is not None:
            passes = row["low"] >= arguments.at_least
            all_pass &= passes
            print(
                f"{'Accepted' if passes else 'Not accepted'}: the interval begins at "
                f"{row['low']:+.2f}, {'not ' * passes}below {arguments.at_least:g}."
            )
    if arguments.csv:
        from engine.measures.tables import write_csv

        write_csv(arguments.csv, table)
        print(f"\ntable  {arguments.csv.resolve()}")
    return int(not all_pass)


def compare(names: Sequence[str], sides: Sequence[Side | None]) -> pandas.DataFrame:
    """The table of `engine.compare` from what its names mean (`find_side`)."""
    from engine.campaigns.compared import compare_sides
    from engine.measures import score_tables, table_comparisons

    if len(names) < 2:
        raise ValueError("give at least two models to compare")
    found = [side for side in sides if side is not None]
    if not found:
        return table_comparisons.compare_scores(
            [score_tables.read_scores(Path(name)) for name in names]
        )
    if len(found) < len(names):
        raise ValueError(
            f"{names[sides.index(None)]} is a table and {found[0].name} of a campaign, whose mRI "
            "has no table: compare campaigns with campaigns, and tables with tables"
        )
    return compare_sides(found)


def text(table: pandas.DataFrame) -> str:
    """The comparisons as a table, and notes on the test."""
    from engine.report import console
    from engine.report.text import p_value

    rows = [
        [
            f"{row['b']} - {row['a']}",
            _of_what(row),
            *(f"{row[name]:.2f}" for name in ("a_mean", "b_mean")),
            f"{row['difference']:+.2f}",
            f"[{row['low']:+.2f}, {row['high']:+.2f}]",
            p_value(row["p"]),
            p_value(row["adjusted_p"]),
            f"{row['minimum_detectable_difference']:.2f}",
            f"{row['images']:,}",
        ]
        for row in table.to_dict("records")
    ]
    title = " ".join(_notes(table))
    heads = ["B - A", "number", "A", "B", "difference", "95% interval", "p", "adjusted p"]
    return console.text(title, [*heads, "minimum detectable difference", "images"], rows)


def _of_what(row: Mapping[Any, Any]) -> str:
    """What a row compares, such as `accuracy on sketch`, without its unit."""
    name = row["quantity"].partition(",")[0]
    return f"{name} on {row['set']}" if row["set"] else name


def _notes(table: pandas.DataFrame) -> Iterator[str]:
    from engine.measures.paired import TEST

    overall = table[table["set"] == ""]
    first = overall.iloc[0]
    yield f"Paired on {first['images']:,} images."
    sets = len(table) // len(overall) - 1
    if sets > 0:
        yield f"A number without a dataset is a mean over {sets} datasets."
    yield f"Test: {', '.join(table['test'].unique())}; adjusted p: Holm."
    yield "Minimum detectable difference: the smallest that a test detects with a power of 80%."
    if first["seeds"] == 1 and first["test"] == TEST:
        yield "One training seed: another training may differ by more."
    if table["sources"].min() < FEW:
        yield f"Fewer than {FEW} source images: intervals are approximate."
    yield from overall["notes"].unique()
    for row in overall.to_dict("records"):
        if left := row["only_a"] + row["only_b"]:
            yield (
                f"{left:,} images that only {row['a']} ({row['only_a']:,}) or {row['b']} "
                f"({row['only_b']:,}) has are left out."
            )


def verdict(row: Mapping[Any, Any]) -> str:
    """One sentence on a comparison."""
    from engine.measures.bootstrap import SIGNIFICANT
    from engine.measures.seeds import ROUNDING

    a, b = row["a"], row["b"]
    if row["minimum_detectable_difference"] < ROUNDING:
        return f"{a} and {b} have equal scores on all {row['images']:,} images."
    span = f"95% interval {row['low']:+.2f} to {row['high']:+.2f}"
    if row["adjusted_p"] < SIGNIFICANT:
        better = "better" if row["difference"] > 0 else "worse"
        return f"{b} is {better} than {a} by {abs(row['difference']):.2f} ({span})."
    return (
        f"No difference between {a} and {b} is shown ({span}); with this much data, one of "
        f"{row['minimum_detectable_difference']:.2f} would be detected in 80% of cases."
    )


def find_side(name: str, overrides: Sequence[Override]) -> Side | None:
    """What a name means; None for a table."""
    from engine.campaigns import plan_folder
    from engine.campaigns.compared import Side
    from engine.campaigns.find_campaign import campaign_folder
    from engine.recipe.campaigns import recipe_names

    if Path(name).is_file() and Path(name).suffix not in (".yaml", ".yml"):
        return None
    words = name.rstrip("/").split("/")
    for count in range(min(3, len(words))):
        campaign, inner = "/".join(words[: len(words) - count]), words[len(words) - count :]
        folder = campaign_folder(campaign)
        if folder is not None and not plan_folder.in_campaign(folder):
            if not inner:
                return None
            continue
        if folder is None and not (
            campaign in recipe_names("campaigns") or Path(campaign).is_file()
        ):
            continue
        found = report.finished(campaign, [] if folder else overrides)
        if len(found) > 1:
            raise CampaignError(f"{campaign} has {len(found)} models: give the folder of one")
        method, downstream = [*inner, "", ""][:2]
        known = found[0].record
        if known.missing:
            raise CampaignError(f"{campaign} is unfinished: run it again, then compare")
        for word, of in ((method, known.methods), (downstream, known.downstreams)):
            if word and word not in of:
                raise CampaignError(f"{name}: {campaign} has no {word!r}, but {', '.join(of)}")
        return Side(name, found[0], method, downstream)
    raise ValueError(
        f"{name} is neither a table, nor a finished campaign, nor CAMPAIGN/METHOD or "
        "CAMPAIGN/METHOD/DATASET of one"
    )


def _settings(sides: Sequence[Side]) -> Iterator[str]:
    """How the campaigns differ from the first."""
    from engine.campaigns.compared import differing_settings, differing_versions

    runs = list({side.run.place.path: side.run for side in sides}.values())
    for other in runs[1:]:
        yield f"A  {runs[0].place.campaign}\nB  {other.place.campaign}\n"
        yield _listed("settings", differing_settings(runs[0].plan, other.plan))
        yield _listed("versions", differing_versions(runs[0], other))


def _listed(title: str, found: Sequence[CampaignDifference]) -> str:
    if not found:
        return f"{title}: the same\n"
    lines = [
        f"  {one_line(each.name)}: {_short(each.first)} | {_short(each.second)}" for each in found
    ]
    return "\n".join([f"{title} (A | B)", *lines, ""])


def _short(value: object) -> str:
    shown = "-" if value is None else one_line(f"{value}")
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
