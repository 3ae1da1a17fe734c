"""A short part of `make faults`, and that its trials can fall short."""

import os
import re
import signal
import sys

import pytest

from faults import disk, forked
from faults.disk import only_error
from faults.forked import Ended, FellShort, Skipped
from helpers.processes import ROOT, run

KINDS = ("kill", "mutate", "full", "readonly")


@pytest.mark.slow
def test_trials_of_each_kind_end_as_they_should():
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "83", "--kinds", *KINDS]
    done = run(command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in KINDS:
        assert re.search(rf"^{kind} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mount_ends_with_the_process_that_made_it(tmp_path):
    """Whatever ends it: nothing of it runs any more."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount_and_die() -> int:
        disk.keep_mounts()
        try:
            disk.mount(["-t", "tmpfs", "tmpfs", str(place)])
        except Skipped:
            return 0
        os.write(1, str(os.path.ismount(place)).encode())
        forked.die()
        return 1

    ended = forked.run(mount_and_die, tmp_path / "log")
    if ended.code == 0:
        pytest.skip("this machine mounts nothing")
    assert (ended.code, ended.text) == (-signal.SIGKILL, "True")
    assert not os.path.ismount(place)


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
