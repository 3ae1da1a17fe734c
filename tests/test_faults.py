"""A short part of `make faults`, and that its trials can fall short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults.__main__ import Tally, show
from faults.damage import only_error
from faults.processes import Ended, FellShort
from grids import environment

ROOT = Path(__file__).parents[1]
KINDS = ("kill", "mutate", "full", "readonly")


@pytest.mark.slow
def test_trials_of_each_kind_end_as_they_should():
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "44", "--kinds", *KINDS]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        command, env=environment() | path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in KINDS:
        assert re.search(rf"^{kind} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M)


@pytest.mark.parametrize(
    ("code", "text", "cpu_s", "why"),
    [
        (1, "error: x\n", 1.0, "exit code 1"),
        (2, "Traceback (most recent call last):\nerror: x\n", 1.0, "a traceback"),
        (2, "error: x\nerror: y\n", 1.0, "2 error lines"),
        (2, "no word\n", 1.0, "0 error lines"),
        (2, "error: x\n", 11.0, "11 s of CPU"),
    ],
)
def test_another_end_than_one_error_line_falls_short(code, text, cpu_s, why):
    assert only_error(Ended(2, "a warning\nerror: x\n", 9.0), "a trial") == "error: x"
    with pytest.raises(FellShort, match=f"^after a trial, {why}"):
        only_error(Ended(code, text, cpu_s), "a trial")


def test_what_fell_short_is_shown_with_the_command_that_repeats_it(capsys):
    assert show({"kill": Tally(2), "full": Tally(skipped="only root can mount")}) == 0
    assert show({"mutate": Tally(3, short={7: "other numbers"})}) == 1
    assert "faults --kinds mutate --seed 7 --trials 1\n" in capsys.readouterr().out
