"""How a command begins and ends where streams, folders or the environment are odd."""

import errno
import getpass
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from engine.machine import entry, files, parent
from helpers.processes import ROOT


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_are_nothing_but_silent(closed, tmp_path):
    """A file that takes the number of a closed stream is not written to as if it were one."""
    file = tmp_path / "result"
    script = f"""
import subprocess, sys
from engine.machine import entry
def work():
    open({str(file)!r}, 'w').write('whole')
    print('shown', flush=True)
    subprocess.run(['echo', 'of a program'], check=True)
sys.exit(entry.guarded(work))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"") and file.read_text() == "whole"
    assert (done.stdout == b"shown\nof a program\n") == (1 not in closed)


def test_text_is_utf8_in_any_locale():
    work = "from engine.machine import entry; entry.guarded(lambda: print('91.2 \\u00b1 0.3'))"
    done = subprocess.run(
        [sys.executable, "-c", work], cwd=ROOT, capture_output=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert (done.stderr, done.stdout.decode("utf-8")) == (b"", "91.2 ± 0.3\n")


def test_a_sign_that_an_encoding_lacks_ends_no_command():
    work = "from engine.machine import entry; entry.guarded(lambda: print('\\u2192 91.2 \\u00b1'))"
    done = subprocess.run(
        [sys.executable, "-c", work], cwd=ROOT, capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"? 91.2 \xb1\n")


def test_a_user_without_a_name_has_one(monkeypatch):
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", mock.Mock(side_effect=KeyError("uid not found")))
    names: list[str] = []
    assert entry.guarded(lambda: names.append(getpass.getuser())) == 0
    assert names == [f"user-{os.getuid()}"]


def test_a_full_disk_that_an_error_does_not_name_is_found(monkeypatch, tmp_path, capsys):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda place: usage._replace(free=0 if place == str(tmp_path) else 1 << 30),
    )
    assert entry.guarded(full) == 2
    shown = capsys.readouterr().err
    assert shown == f"error: [Errno 28] No space left on device; full: {tmp_path}\n"


def test_a_folder_that_is_a_link_to_nowhere_or_a_file(tmp_path, capsys):
    (link := tmp_path / "runs").symlink_to(tmp_path / "away")
    (file := tmp_path / "file").touch()
    for place in (link, file):
        assert entry.guarded(lambda place=place: (place / "x").mkdir(parents=True)) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {link} is a link to {tmp_path / 'away'}, which does not exist; make that folder "
        "or remove the link",
        f"error: {file} is a file, but a folder of that name is needed; move it away",
    ]


def test_a_user_without_a_home(monkeypatch):
    """As containers have, whose user is not in /etc/passwd."""
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError))
    monkeypatch.setenv("RIB_CACHE", "/cache")
    assert files.cache_folder() == Path("/cache")
    monkeypatch.delenv("RIB_CACHE")
    with pytest.raises(ValueError, match="no home folder; set RIB_CACHE to a folder"):
        files.cache_folder()


def test_jobs_are_no_ranks_of_what_the_command_is_in(monkeypatch):
    goes = {*parent.OF_RANKS, "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_PROCID"}
    stays = {"SLURM_CONF", "RIB_CACHE", "CUDA_VISIBLE_DEVICES"}
    for name in goes | stays:
        monkeypatch.setenv(name, "1")
    assert parent.environment_of_jobs().keys() & (goes | stays) == stays
