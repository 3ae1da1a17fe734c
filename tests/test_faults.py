"""A short part of `make faults`, and that its trials can fall short."""

import os
import re
import sys

import pytest

from faults.disk import only_error
from faults.forked import Ended, FellShort
from helpers.processes import ROOT, run

KINDS = ("kill", "mutate", "full", "readonly", "hostile")


@pytest.mark.slow
def test_trials_of_each_kind_end_as_they_should():
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "44", "--kinds", *KINDS]
    done = run(command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in KINDS:
        assert re.search(rf"^{kind} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mount_ends_with_the_process_that_made_it(tmp_path):
    """Whatever ends it: nothing of it runs any more."""
    work = f"""
import os, signal
from pathlib import Path
from faults import disk, forked
disk.keep_mounts()
try:
    disk.mount(["-t", "tmpfs", "tmpfs", {str(tmp_path)!r}])
except forked.Skipped:
    print("skipped")
else:
    print(os.path.ismount({str(tmp_path)!r}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = run([sys.executable, "-c", work], PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    if ended.stdout == "skipped\n":
        pytest.skip("this machine mounts nothing")
    assert ended.stdout == "True\n", ended.stderr
    assert not os.path.ismount(tmp_path)


def test_another_end_than_one_error_line_falls_short():
    assert only_error(Ended(2, "a warning\nerror: x\n", 9.0), "a trial") == "error: x"
    for code, text, cpu_s, why in (
        (1, "error: x\n", 1.0, "exit code 1"),
        (2, "Traceback (most recent call last):\nerror: x\n", 1.0, "a traceback"),
        (2, "error: x\nerror: y\n", 1.0, "2 error lines"),
        (2, "error: x\n", 11.0, "11 s of CPU"),
    ):
        with pytest.raises(FellShort, match=f"^after a trial, {why}"):
            only_error(Ended(code, text, cpu_s), "a trial")
