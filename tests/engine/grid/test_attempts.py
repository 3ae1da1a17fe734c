"""Attempts at jobs: when, on what, and how they ended."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from engine.errors import FirstRankError
from engine.grid import attempts
from loaders.schema import DamagedFile


def recorded(place: Path, started: float = 100.0) -> AbstractContextManager:
    return attempts.recorded(place, "column-few", "column", started)


def test_an_attempt_ends_with_its_error_or_without(tmp_path):
    with recorded(tmp_path) as note:
        note("A100", 2)
        (begun,) = attempts.read(tmp_path)
        assert begun.ended is None and begun.failure == attempts.KILLED and begun.hours == 0
        assert (begun.device, begun.processes) == ("A100", 2)
    with pytest.raises(ValueError, match="no room"), recorded(tmp_path, 200.0):
        raise ValueError("no room" + "x" * 1000)
    first, second = attempts.read(tmp_path)
    assert first.error == first.failure == "" and first.ended is not None
    assert first.hours == pytest.approx((first.ended - 100) / 3600)
    assert second.error == ("no room" + "x" * 1000)[: attempts.LONGEST]


def test_of_several_ranks_the_one_with_an_error_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with recorded(tmp_path):
        pass
    with pytest.raises(FirstRankError), recorded(tmp_path):
        raise FirstRankError("the first rank failed")
    assert not attempts.read(tmp_path)
    with pytest.raises(ValueError, match="no GPU"), recorded(tmp_path):
        raise ValueError("no GPU")
    assert [attempt.error for attempt in attempts.read(tmp_path)] == ["no GPU"]


def test_a_damaged_file_is_refused_by_name(tmp_path):
    with recorded(tmp_path):
        pass
    (file,) = (tmp_path / attempts.FOLDER).iterdir()
    values = json.loads(file.read_text()) | {"processes": 7}
    without_hash = {key: value for key, value in values.items() if key != "sha256"}
    for text in ("[]", json.dumps(values), json.dumps(without_hash)):
        file.write_text(text)
        with pytest.raises(DamagedFile, match=f"{file.name} .*; delete it"):
            attempts.read(tmp_path)
