"""What `make` does to a user's files, and what an audit answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INHERITED = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # as from a shell: the make that runs the tests hands its own options down, and counts levels
    shell = {name: value for name, value in os.environ.items() if name not in INHERITED}
    shutil.copy(ROOT / "Makefile", folder)
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env=shell)


def test_clean_keeps_results_and_says_how_to_remove_them(tmp_path):
    result = tmp_path / "runs" / "store" / "done.json"
    result.parent.mkdir(parents=True)
    result.touch()
    (tmp_path / ".venv").mkdir()
    ended = make(tmp_path, "clean")
    assert ended.returncode == 0 and result.exists() and not (tmp_path / ".venv").exists()
    assert "To remove them too: rm -r runs" in ended.stdout


def test_without_the_pinned_packages_setup_is_loud_and_red_in_ci(tmp_path, monkeypatch):
    """Installing the newest versions in silence, CI tested another stack than it said."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "setup.log").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >>calls\ncase "$*" in *" -c "*|*uv*) exit 1;; esac\n')
    python.chmod(0o755)
    (tmp_path / "alone.mk").write_text("include Makefile\npackages:\n\t@$(pinned)\n")
    unpinned = "-m pip install -e .[test]\n"
    monkeypatch.setenv("CI", "true")
    ended = make(tmp_path, "-f", "alone.mk", "packages")
    assert ended.returncode != 0 and "CI is set" in ended.stderr
    assert unpinned not in (tmp_path / "calls").read_text()
    monkeypatch.delenv("CI")
    ended = make(tmp_path, "-f", "alone.mk", "packages")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "!!! The versions in constraints.txt do not install" in ended.stderr
    assert (tmp_path / "calls").read_text().endswith(unpinned)


def audit(*packages: dict) -> tuple[int, str]:
    text = json.dumps({"dependencies": list(packages)})
    command = [sys.executable, ROOT / ".ci" / "audit.py"]
    ended = subprocess.run(command, input=text, capture_output=True, text=True)
    return ended.returncode, ended.stdout


def test_an_audit_that_skips_packages_names_them_and_is_red():
    sound = {"name": "numpy", "version": "2.4.6", "vulns": []}
    ours = {"name": "rib-engine", "skip_reason": "not on PyPI"}
    skipped = {"name": "torch", "skip_reason": "torch 2.13.0+cpu is not on PyPI"}
    fault = {"id": "CVE-1", "fix_versions": ["2.0"]}
    assert audit(sound, ours) == (0, "1 of 1 packages looked up, 0 with known weaknesses\n")
    status, text = audit(skipped, ours)
    assert status == 1 and "torch was not looked up: torch 2.13.0+cpu is not on PyPI" in text
    status, text = audit({"name": "pillow", "version": "1.0", "vulns": [fault]}, sound)
    assert status == 1 and text.startswith("pillow 1.0: CVE-1; cured by 2.0\n2 of 2")
    assert audit(ours)[0] == 1
