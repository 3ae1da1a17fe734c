"""What `make` does to a user's files, what set-up prints, and what an audit answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INHERITED = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # as from a shell: the make that runs the tests hands its own options down, and counts levels
    shell = {name: value for name, value in os.environ.items() if name not in INHERITED}
    ended = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env=shell)
    ended.stdout = re.sub(r" \d+ s$", " 0 s", ended.stdout, flags=re.M)  # on a busy machine, 1
    return ended


def test_clean_keeps_results_and_says_how_to_remove_them(checkout: Path) -> None:
    result = checkout / "runs" / "store" / "done.json"
    result.parent.mkdir(parents=True)
    result.touch()
    (checkout / ".venv").mkdir()
    ended = make(checkout, "clean")
    assert ended.returncode == 0 and result.exists() and not (checkout / ".venv").exists()
    assert "To remove them too: rm -r runs" in ended.stdout


def steps(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines of a rule that use `$(step)`."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "setup.log").touch()
    rule = "".join(f"\t@{line}\n" for line in lines)
    (folder / "steps.mk").write_text(f"include Makefile\nsteps:\n{rule}")
    return make(folder, "-f", "steps.mk", "steps")


def test_a_step_is_one_line_with_its_seconds_and_a_log(checkout: Path) -> None:
    ended = steps(checkout, "$(step) 'some packages' sh -c 'echo \"collected, 1\"; echo 2 >&2'")
    assert ended.returncode == 0 and ended.stdout == "set-up: some packages ... 0 s\n"
    assert (checkout / ".venv" / "setup.log").read_text() == "collected, 1\n2\n"


def test_a_step_that_fails_shows_its_own_output_and_ends_set_up(checkout: Path) -> None:
    ended = steps(
        checkout,
        "$(step) one echo before",
        "$(step) two sh -c 'echo why; exit 3' || $(step) three sh -c 'echo as well; exit 3'",
        "echo never",
    )
    assert ended.returncode and ended.stdout.splitlines() == [
        "set-up: one ... 0 s",
        "set-up: two ... failed; the end of .venv/setup.log:",
        "why",
        "set-up: three ... failed; the end of .venv/setup.log:",
        "as well",
    ]


def audit(*packages: dict) -> tuple[int, str]:
    text = json.dumps({"dependencies": list(packages)})
    command = [sys.executable, ROOT / ".ci" / "audit.py"]
    ended = subprocess.run(command, input=text, capture_output=True, text=True)
    return ended.returncode, ended.stdout


def test_an_audit_that_skips_packages_names_them_and_is_red() -> None:
    sound = {"name": "numpy", "version": "2.4.6", "vulns": []}
    ours = {"name": "rib-engine", "skip_reason": "not on PyPI"}
    skipped = {"name": "torch", "skip_reason": "torch 2.13.0+cpu is not on PyPI"}
    fault = {"id": "CVE-1", "fix_versions": ["2.0"]}
    assert audit(sound, ours) == (0, "1 of 1 packages looked up, 0 with known weaknesses\n")
    status, said = audit(skipped, ours)
    assert status == 1 and "torch was not looked up: torch 2.13.0+cpu is not on PyPI" in said
    assert "0 of 1 packages looked up" in said
    status, said = audit({"name": "pillow", "version": "1.0", "vulns": [fault]}, sound)
    assert status == 1 and said.startswith("pillow 1.0: CVE-1; cured by 2.0\n2 of 2")
    assert audit(ours)[0] == 1
