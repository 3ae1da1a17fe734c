"""`rib report`: the page of one finished campaign, or of several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import metrics
from engine.errors import CampaignError
from engine.grid import campaign, workflow

if TYPE_CHECKING:
    from engine.grid.record import FinishedCampaign

REMEDY = "name a campaign, or the folder of one that `rib campaign` finished"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="the page of one campaign, or of several as one")
    parser.add_argument("names", nargs="+", metavar="RUN", help="a campaign's name or its folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--figures", action="store_true", help="write figures as SVG and PDF too")
    parser.add_argument("--out", type=Path, help="folder of the report (default: the campaign's)")
    metrics.add_models_csv(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine.report import finish, tables

    words = [word for word in arguments.names if "=" in word] + arguments.overrides
    runs = [
        run for name in arguments.names if "=" not in name for run in _finished(name, words)
    ]
    if not runs:
        raise CampaignError(f"no campaign is named; {REMEDY}")
    if len(runs) == 1 and arguments.out is None:
        with workflow.locked(runs[0].report.parent):
            results = tables.results(runs[0], arguments.models_csv)
            path = finish.write(runs[0], results, figures=arguments.figures)
    elif arguments.out is None:
        raise CampaignError("several campaigns need a folder for their common report: --out DIR")
    else:
        path = finish.write_merged(
            arguments.out, runs, arguments.models_csv, figures=arguments.figures
        )
    print(f"report  {path.resolve()}")


def _finished(name: str, words: Sequence[str]) -> list[FinishedCampaign]:
    """The finished campaign in a folder, or those that a name and overrides stand for."""
    from engine import recipe
    from engine.grid import record, stamp

    folder = Path(name)
    if not folder.is_dir():
        return [record.find(name, model) for model in recipe.each_model(name, words)]
    places = [path.parent for path in sorted(folder.glob(f"plans/*/{campaign.RECORD}"))]
    if shown := stamp.plan_of(folder / campaign.REPORT):
        places = [place for place in places if place.name == shown]
    if len(places) != 1:
        raise CampaignError(f"{folder} holds {len(places)} finished campaigns; {REMEDY}")
    return [record.read(places[0].resolve())]
