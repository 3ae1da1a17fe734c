"""A made-up campaign's report, written once for all tests that only read it."""

from pathlib import Path

import pytest

from engine.report import finish
from engine.report.results import Results, of_campaign
from helpers import reports


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> tuple[Path, Results]:
    """The page's path, beside which are all files, and what they show."""
    run = reports.finished(tmp_path_factory.mktemp("runs"))
    results = of_campaign(run)
    return finish.write(run, results, figures=True), results
