"""Made-up campaigns for all tests that only read them, and the written report of one."""

from pathlib import Path

import pytest

from engine.campaigns.record import FinishedCampaign
from engine.report import finish
from engine.report.results import Results, of_campaign
from helpers import reports


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> tuple[Path, Results]:
    """The page's path, beside which are all files, and what they show."""
    settings = {"Command": "rib campaign drawn", "Versions": {"torch": "2"}}
    settings |= {"Data fingerprints": {"flat": "0" * 64}}
    run = reports.finished(tmp_path_factory.mktemp("runs"), settings=settings)
    results = of_campaign(run)
    return finish.write(run, results, figures=True), results


@pytest.fixture(scope="session")
def two(tmp_path_factory) -> list[FinishedCampaign]:
    """Campaigns `a` and `b` on one benchmark, each from a pretrained model of its name."""
    folder = tmp_path_factory.mktemp("two")
    return [reports.finished(folder, name, model=name, seed=k) for k, name in enumerate("ab")]
