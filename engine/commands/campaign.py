"""`rib campaign`: run a grid, or what is missing of it, to its report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from engine import campaign, workflow
from engine.errors import CampaignError


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("campaign", help="run a grid: methods x sets, to a report")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument("--dry-run", action="store_true", help="show what would run and stop")
    parser.add_argument(
        "--profile", type=Path,
        help="a Snakemake profile (a folder with config.yaml): a cluster's executor and resources",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe

    asked = recipe.each_model(arguments.name, arguments.overrides)
    stopped = _to_encode(arguments, asked)
    if stopped and not arguments.dry_run:
        raise CampaignError(stopped[0])
    for words in asked:
        try:
            _run(arguments, words)
        except CampaignError as error:  # the other models' grids need not wait for it
            stopped.append(str(error))
    if stopped:
        raise CampaignError("; ".join(stopped))


def _to_encode(arguments: argparse.Namespace, asked: Sequence[Sequence[str]]) -> list[str]:
    """The sets that no pack and no folder gives, in one message: grids take days and open a set
    only when its turn comes."""
    from engine import recipe

    lines: dict[Path, str] = {}
    for words in asked:
        campaign.plan(arguments.name, words, arguments.cores)  # mistakes come before what lacks
        resolved = recipe.load(arguments.name, words)
        if resolved.dataset.kind != "imagenet" or _finished(arguments.name, words):
            continue
        from engine import verify
        from engine.commands import encode
        from engine.data import imagenet, sets

        own = [f"model={model}"] if (model := recipe.model_of(arguments.name)) else []
        dataset, there = resolved.dataset, verify.encoded(resolved)
        for name in (dataset.upstream, *dataset.sets):
            rooted = dataset.root and not imagenet.is_whole_c(dataset, name)
            if name in there or (rooted and (Path(dataset.root) / name).exists()):
                continue
            folder = sets.pack_folder(Path(resolved.runs), dataset, resolved.model, name)
            lines.setdefault(folder, encode.command(resolved, name, [*own, *words]))
    if not lines:
        return []
    return ["\n  ".join(["these sets are not encoded yet; run", *lines.values()])]


def _finished(name: str, words: Sequence[str]) -> bool:
    from engine import record

    try:
        record.find(name, words)
    except CampaignError:
        return False
    return True


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    from engine.sampling import half_widths

    profile = arguments.profile
    for plan in half_widths.sequential_plans(arguments.name, words, arguments.cores):
        if arguments.dry_run:
            workflow.run(plan, arguments.cores, profile, dry_run=True)
            return
        if campaign.finished(plan):
            print(f"{plan.name} is finished; nothing to do.")
        else:
            workflow.run(plan, arguments.cores, profile)
    show(campaign.report_page(plan))


def show(page: Path) -> None:
    """Print the table a campaign ended with, and where its report is."""
    print(f"\n{page.with_name(campaign.TABLE).read_text()}\nreport  {page.resolve()}")
