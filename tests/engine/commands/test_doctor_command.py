"""`rib doctor` as it is called, also where another package hides one of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grids
import pytest

from engine import cli
from engine.commands import doctor
from engine.errors import ShadowedError
from engine.machine import entry
from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Check, Diagnosis

ROOT = Path(__file__).resolve().parents[3]
FINE = Check("GPU", "speed", lambda: Diagnosis(MISSING, "none", needed=False))
BROKEN = Check("compiler", "torch.compile", lambda: Diagnosis(WRONG, "fails", "install g++"))


@pytest.mark.parametrize(
    ("checks", "code", "last"),
    [
        ((FINE,), 0, "all that is needed here is ok"),
        ((BROKEN, FINE), 1, "needed here and not ok: compiler"),
    ],
)
def test_exit_code_says_whether_this_machine_can_work(
    checks: tuple[Check, ...],
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def hidden() -> None:
        raise ShadowedError("`kernels` is hidden")

    monkeypatch.setenv(entry.DEBUG, "")  # which --debug sets, for this test alone
    monkeypatch.setattr(doctor, "checks", lambda runs: checks)
    monkeypatch.setattr(entry, "check_shadowing", hidden)
    assert cli.main(["recipes"]) == 2, "another command"
    capsys.readouterr()
    assert cli.main(["--debug", "doctor"]) == code, "it runs where the others refuse to"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last and lines[0].startswith("Python 3.")
    assert "missing  GPU        none (speed, optional)" in lines
    broken = "wrong    compiler   fails (torch.compile); cure: install g++"
    assert (broken in lines) == bool(code)


def test_names_are_distinct_and_nothing_of_ours_is_needed_to_start(tmp_path: Path) -> None:
    names = [check.name for check in doctor.checks(tmp_path)]
    assert len(set(names)) == len(names)
    for name in ("kernels", "loaders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package ran')\n")
    command = [sys.executable, "-m", "engine.cli", "doctor", "--help"]
    environment = grids.environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "--runs" in done.stdout


@pytest.mark.slow
def test_every_check_on_this_machine(tmp_path: Path) -> None:
    """Of which set-up made all that tests need; and with `kernels` hidden, which it names."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('the wrong package ran')\n")
    environment = grids.environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "engine.cli", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    states = {line[9:20].strip(): line.split()[0] for line in done.stdout.splitlines() if line}
    for name in ("engine", "loaders", "torch", "DeepSpeed", "compiler", "Python.h", "runs"):
        assert states[name] == OK, done.stdout
    assert states["kernels"] == WRONG and done.returncode == 1
    assert f"{tmp_path / 'kernels.py'} hides ours" in done.stdout and done.stderr == ""
