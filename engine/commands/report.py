"""`rib report`: the page of one finished campaign, or of several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import metrics
from engine.errors import CampaignError
from engine.grid import campaign, outcomes, workflow
from engine.machine import first_line

if TYPE_CHECKING:
    from engine.grid.record import FinishedCampaign

REMEDY = "name a campaign, or the folder of one that `rib campaign` ran"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="the page of one campaign, or of several as one")
    parser.add_argument("names", nargs="+", metavar="RUN", help="a campaign's name or its folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--figures", action="store_true", help="write figures as SVG and PDF too")
    parser.add_argument("--out", type=Path, help="folder of the report (default: the campaign's)")
    parser.add_argument("--force", action="store_true", help="write into --out whatever it holds")
    metrics.add_models_csv(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    first_line.show(f"reading the predictions of {', '.join(arguments.names)}")
    from engine.report import finish
    from engine.report.results import of_campaign

    runs = [run for name in arguments.names for run in _finished(name, arguments.overrides)]
    if len(runs) == 1 and arguments.out is None:
        with workflow.locked(runs[0].report.parent):
            results = of_campaign(runs[0], arguments.models_csv)
            path = finish.write(runs[0], results, figures=arguments.figures)
    elif arguments.out is None:
        raise CampaignError("several campaigns need a folder for their common report: --out DIR")
    else:
        if not arguments.force:
            _check_free(arguments.out)
        path = finish.write_merged(
            arguments.out, runs, arguments.models_csv, figures=arguments.figures
        )
    print(f"report  {path.resolve()}")


def _check_free(out: Path) -> None:
    """Raises CampaignError where a common report would replace files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CampaignError(f"--out {out} is not empty; name a new folder, or pass --force")


def _finished(name: str, words: Sequence[str]) -> list[FinishedCampaign]:
    """The campaign in a folder, as far as it is finished, or those finished ones that a name and
    overrides stand for."""
    from engine import recipe
    from engine.grid import record

    folder = Path(name)
    if not folder.is_dir():
        return [record.find(name, model) for model in recipe.each_model(name, words)]
    places = [path.parent for path in folder.glob(f"{campaign.PLANS}/*/{campaign.RECORD}")]
    shown = [place for place in places if outcomes.is_shown(place)]
    if len(places) > 1 and len(shown) != 1:
        raise CampaignError(f"{folder} holds {len(places)} finished campaigns; {REMEDY}")
    places = shown or places
    return [record.read(places[0].resolve()) if places else _unfinished(folder)]


def _unfinished(folder: Path) -> FinishedCampaign:
    """What is finished of the campaign in a folder that was begun last."""
    import torch

    from engine.grid import make_record
    from engine.grid.record import FinishedCampaign
    from engine.machine import ranks

    files = folder.glob(f"{campaign.PLANS}/*/{campaign.FILE}")
    plans = sorted(files, key=lambda path: path.stat().st_mtime_ns)
    if not plans:
        raise CampaignError(f"{folder} holds no campaign; {REMEDY}")
    plan = campaign.read(plans[-1].resolve())
    # A login node need not have the GPUs of the jobs.
    is_auto = plan.device == "auto"
    device = ranks.pick_device("auto") if is_auto else torch.device(plan.device)
    return FinishedCampaign(make_record.of_finished_columns(plan, device), plan.place)
