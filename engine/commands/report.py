"""`rib report` : write tables and report from stored predictions.

This imports no torch and opens no weights file.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.campaigns import make_record, plan_folder, record, seal, workflow
from engine.campaigns.find_campaign import RUNS, campaign_folder, find_campaign
from engine.campaigns.plan import read_plan
from engine.campaigns.plan_folder import PublishedFolder
from engine.campaigns.record import FinishedCampaign
from engine.commands import refuse_overwriting
from engine.commands.campaign import show
from engine.errors import CampaignError
from engine.machine.terminal import announce
from engine.recipe.campaigns import each_model
from engine.recipe.overrides import Override
from loaders.files import locks

if TYPE_CHECKING:
    from engine.report.results import Results

SO_FAR = "report-so-far"  # while the campaign runs
REMEDY = "give the name of a campaign, or the folder of one that `rib campaign` ran"


def run(arguments: argparse.Namespace) -> None:
    out, names = arguments.out, arguments.names
    if len(names) > 1 and out is None:
        raise CampaignError(
            "several campaigns: give a folder for their common report with --out DIR"
        )
    if out:
        refuse_overwriting(out, arguments.force, is_folder=True)
    published = [name for name in names if _is_published(Path(name))]
    if published and out is None:
        raise CampaignError(f"{names[0]} is published: give a folder for its report with --out DIR")
    if len(names) > 1 and published:
        _board(arguments)
        return
    announce(f"reading the predictions of {', '.join(names)}")
    runs = [run for name in names for run in finished(name, arguments.overrides)]
    if arguments.compare:
        _check_method(arguments.compare, runs)
    if out:
        _write_into(out, runs, arguments)
        return
    for run in runs:
        if run.record.missing and locks.is_held(run.place.lock):
            # The running campaign writes its own report when it ends.
            _write_into(run.place.campaign_root.at(SO_FAR), [run], arguments)
        else:
            _write(run, arguments)


def _check_method(method: str, runs: Sequence[FinishedCampaign]) -> None:
    """Raise CampaignError if a campaign lacks the method to compare with."""
    for run in runs:
        if method not in (methods := run.record.methods):
            raise CampaignError(
                f"{run.record.name} has no method {method!r}; it has {', '.join(methods)}"
            )


def _write_into(
    folder: Path, runs: Sequence[FinishedCampaign], arguments: argparse.Namespace
) -> None:
    """Write the report of campaigns, a common one for several, into a folder."""
    from engine.report import finish  # here, because it imports pandas

    results = _results(runs, arguments)
    _show(finish.write_into(folder, results, figures=arguments.figures), results, arguments)


def _write(run: FinishedCampaign, arguments: argparse.Namespace) -> None:
    """Write a campaign's own report again."""
    from engine.report import finish  # here, because it imports pandas

    if not os.access(run.place.campaign, os.W_OK):
        raise CampaignError(
            f"{run.place.campaign} is read-only: give a folder for the report with --out DIR"
        )
    with workflow.locked(run.place):
        results = _results([run], arguments)
        page = finish.write(run, results, figures=arguments.figures)
    _show(page, results, arguments)


def _is_published(folder: Path) -> bool:
    places = plan_folder.in_campaign(folder) if folder.is_dir() else ()
    return any(isinstance(place, PublishedFolder) for place in places)


def _board(arguments: argparse.Namespace) -> None:
    """Write one page of published folders, each with its audit."""
    given = arguments.overrides or arguments.models_csv or arguments.published or arguments.figures
    if given or arguments.compare is not None:
        raise CampaignError("a page of published folders has no other option than --out")
    from engine.exchange import board  # here, because it imports pandas
    from engine.exchange.audit import audit

    audits = []
    for name in arguments.names:
        announce(f"auditing {name}")
        audits.append(audit(Path(name), RUNS))
        print(f"{name}: {'refused' if audits[-1].problems else 'passes'}")
    print(f"report  {board.write(arguments.out, audits).resolve()}")


def _results(runs: Sequence[FinishedCampaign], arguments: argparse.Namespace) -> Results:
    from engine.report import results
    from engine.report.merged import merged
    from engine.report.published import read_published, read_released

    csv, several = arguments.models_csv, len(runs) > 1
    made = merged(runs, csv) if several else results.of_campaign(runs[0], csv)
    if file := arguments.published:
        is_runs = file.is_dir()
        published = read_released(file) if is_runs else read_published(file, made.record.benchmark)
        if not published.models:
            raise CampaignError(
                f"{file} has no numbers for the benchmark {made.record.benchmark}: add a version "
                "with its name as `benchmark`, or without `benchmark`"
            )
        made = dataclasses.replace(made, published=published)
    return made


def _show(page: Path, results: Results, arguments: argparse.Namespace) -> None:
    """Print the table of a report, and comparisons if requested."""
    from engine.report import terminal

    show(page)
    for model in results.models:
        if arguments.compare is not None:
            print(f"\n{terminal.comparisons(results, model, arguments.compare or None)}")


def finished(name: str, overrides: Sequence[Override]) -> list[FinishedCampaign]:
    """The campaign in a folder, with its finished columns, or the finished campaigns of a name and
    overrides."""
    if (folder := campaign_folder(name)) is None:
        return [find_campaign(name, grid) for grid in each_model(name, overrides)]
    if overrides:
        words = " ".join(override.text for override in overrides)
        raise CampaignError(
            f"{words}: a folder is reported as it ran. Leave the overrides out, or give a "
            "campaign's name"
        )
    plans = plan_folder.in_campaign(folder)
    places = [place for place in plans if place.root.has(place.record)]
    shown = [place for place in places if seal.is_shown(place)]
    if len(places) > 1 and len(shown) != 1:
        raise CampaignError(f"{folder} contains {len(places)} finished campaigns; {REMEDY}")
    places = shown or places
    return [record.read_record(places[0]) if places else _unfinished(folder)]


def _unfinished(folder: Path) -> FinishedCampaign:
    """The finished columns of the campaign in a folder that was started last."""
    places = [p for p in plan_folder.in_campaign(folder) if p.root.has(p.plan)]
    if not places:
        raise CampaignError(f"{folder} contains no campaign; {REMEDY}")
    plan = read_plan(max(places, key=lambda place: place.plan.stat().st_mtime_ns))
    return FinishedCampaign(make_record.of_finished_columns(plan), plan.place)
