"""A short part of `make faults`, and that its trials can fall short."""

import re
import sys

import pytest

from helpers.processes import ROOT, run

KINDS = ("kill", "mutate", "full", "readonly")


@pytest.mark.slow
def test_trials_of_each_kind_end_as_they_should():
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "83", "--kinds", *KINDS]
    done = run(command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in KINDS:
        assert re.search(rf"^{kind} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M)
