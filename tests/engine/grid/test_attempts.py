"""Attempts at jobs: when, on what, and how they ended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from engine.grid import attempts, failures
from engine.grid.attempts import Attempt
from loaders.schema import DamagedFile


def attempt(started: float = 100.0) -> Attempt:
    return Attempt("column-few", "column", started, None, "A100", 2)


def test_an_attempt_ends_with_its_error_or_without(tmp_path: Path) -> None:
    with attempts.recorded(tmp_path, attempt()):
        (begun,) = attempts.read(tmp_path)
        assert begun.ended is None and begun.failure == attempts.KILLED and begun.hours == 0
    with pytest.raises(ValueError, match="no room"), attempts.recorded(tmp_path, attempt(200.0)):
        raise ValueError("no room" + "x" * 1000)
    first, second = attempts.read(tmp_path)
    assert first.error == first.failure == "" and first.ended is not None
    assert first.hours == pytest.approx((first.ended - 100) / 3600)
    assert second.error == ("no room" + "x" * 1000)[: attempts.LONGEST]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with attempts.recorded(tmp_path, attempt()):
        pass
    (file,) = (tmp_path / attempts.FOLDER).iterdir()
    file.write_text("[]")
    with pytest.raises(DamagedFile, match=file.name):
        attempts.read(tmp_path)


def test_an_altered_file_is_refused_and_an_older_one_is_not(tmp_path: Path) -> None:
    with attempts.recorded(tmp_path, attempt()):
        pass
    (before,) = attempts.read(tmp_path)
    (file,) = (tmp_path / attempts.FOLDER).iterdir()
    values = json.loads(file.read_text()) | {"processes": 7}
    file.write_text(json.dumps(values))
    with pytest.raises(DamagedFile, match=f"{file.name} was altered; delete it"):
        attempts.read(tmp_path)
    del values["sha256"]
    file.write_text(json.dumps(values))
    assert attempts.read(tmp_path) == [dataclasses.replace(before, processes=7)]


def test_failed_jobs_are_those_whose_log_ends_with_a_code_and_that_have_no_marker(
    tmp_path: Path,
) -> None:
    for folder in (failures.LOGS, "done"):
        (tmp_path / folder).mkdir()
    logs = {"a": "error: no room\nexit code 2\n", "b": "error: x\nexit code 2\n", "c": "at work\n"}
    for name, text in logs.items():
        (tmp_path / failures.LOGS / f"{name}.log").write_text(text)
    (tmp_path / "done" / "b").touch()
    assert failures.by_job(tmp_path) == {"a": "failed (exit code 2): error: no room"}
