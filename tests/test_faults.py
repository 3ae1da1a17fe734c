"""A short part of `make faults`, and that its trials can fall short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import readers
from faults.children import Ended
from faults.mutations import kind_of, only_error
from faults.outcome import FellShort
from faults.reading import KINDS, Files, check_error
from grids import environment

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_trials_of_each_kind_end_as_they_should() -> None:
    """Of those that read files, each sixth; `test_damage.py` damages those of a campaign."""
    command = [sys.executable, "-m", "faults", "--trials", "1", "--seed", "44"]
    kinds = ["kill", "stop", "full", "readonly", *[*KINDS][::6]]
    done = subprocess.run(
        [*command, "--kinds", *kinds],
        env=environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for kind in kinds:
        assert re.search(
            rf"^{re.escape(kind)} +(1 trials, 0 fell short|skipped: )", done.stdout, re.M
        )


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
def test_another_end_than_one_error_line_falls_short(
    code: int, text: str, cpu_s: float, why: str
) -> None:
    assert only_error(Ended(2, "a warning\nerror: x\n", 9.0), "a trial") == "error: x"
    with pytest.raises(FellShort, match=f"^after a trial, {why}"):
        only_error(Ended(code, text, cpu_s), "a trial")


def test_files_that_differ_in_names_alone_are_of_one_kind() -> None:
    paths = {
        "packs/few-32px/images.beton": "packs/images.beton",
        "store/pending/ewc-1f/step000000001-2e/done.json": "store/pending/done.json",
        "store/pending/few-1f/000000008-000000015-8.parquet": "store/pending/.parquet",
        "shapes/plans/1f/progress/report.json": "plan/progress",
        "shapes/plans/1f/plan.json": "plan/plan.json",
        "shapes/report/plan": "report/plan",
        "shapes/report/tables/explorer.csv": "report/.csv",
    }
    assert {path: kind_of(Path(path)) for path in paths} == paths


@pytest.mark.parametrize(
    ("line", "is_enough"),
    [
        ("error: {runs}/store/cells/a-1/cell.json was altered; delete it", True),
        ("error: {runs}/store/cells/a-1 is damaged; delete it", True),
        ("error: {runs}/store/cells is damaged; delete it", False),
        ("error: {runs}/store/cells/a-1/cell.json was altered", False),
        ("error: [Errno 2] No such file or directory", False),
    ],
)
def test_an_error_names_the_file_or_its_artefact_and_a_remedy(line: str, is_enough: bool) -> None:
    runs = Path("/runs")
    ended = Ended(2, line.format(runs=runs) + "\n", 1.0)
    path = runs / "store" / "cells" / "a-1" / "cell.json"
    if is_enough:
        check_error(ended, path, runs, "a trial")
        return
    with pytest.raises(FellShort, match=r"^after a trial, no file or remedy in"):
        check_error(ended, path, runs, "a trial")


def test_what_may_be_read_is_what_was_there_or_what_no_file_gives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Readers of a text, in place of the engine's; the file counts as zero where it is missing."""
    path = tmp_path / "runs" / "shapes" / "count"
    path.parent.mkdir(parents=True)
    path.write_text("3")

    class Specimen:
        folder, runs = tmp_path, tmp_path / "runs"

        def restore(self) -> None:
            path.write_text("3")

    def count(specimen: object, file: Path) -> int:
        if not file.exists():
            return 0
        if "x" in file.read_text():
            raise ValueError(f"{file} is damaged; delete it")
        return int(file.read_text())

    files = Files(Specimen())  # pyright: ignore[reportArgumentType]
    with capfd.disabled():  # what a forked process prints is read from its own file
        accepted = files.accepted(count, path)
        assert accepted == {readers.digest_of(3), readers.digest_of(0)}
        path.write_text("x")
        assert files.read(count, path, "a trial") == ""
        path.write_text("4")
        assert files.read(count, path, "a trial") not in {"", *accepted}
        with pytest.raises(
            FellShort, match="a trial, exit code 70"
        ):  # neither a value nor an error
            files.read(lambda *_: {}["no key"], path, "a trial")
