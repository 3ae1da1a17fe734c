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
