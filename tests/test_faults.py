"""A short part of `make faults`."""

import re
import sys

import pytest

from helpers import fork_server
from helpers.processes import run

forked = fork_server.forked
LATER = pytest.param(("readonly", "mutate", "full", "shared"), marks=pytest.mark.exhaustive)
KINDS = [("kill",), LATER]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS)
def test_trials_of_each_kind_end_as_they_should(kinds, forked):
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "83", "--kinds", *kinds]
    done = run(command, **forked | {"FORKED": "faults"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in kinds:
        assert re.search(rf"^{kind} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M)
