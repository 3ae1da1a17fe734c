"""A user's extra, as docs/extend.md has it; the engine without an extra of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from engine import cli
from engine.measures import predictions
from engine.measures.rows import PRE, STEP, of_role
from engine.recipe import extras
from helpers import campaigns

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sure(tmp_path) -> Path:
    """The document's file."""
    text = (ROOT / "docs/extend.md").read_text("utf-8")
    (program,) = re.findall(r"`sure\.py` counts.*?```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "sure.py").write_text(program)
    return tmp_path / "sure.py"


def test_it_adds_rows_a_table_and_a_section_and_changes_nothing_else(
    folder, finished, sure, capsys
):
    plain = finished / "shapes" / "report"
    report = campaigns.run(folder, f"extras.sure.module={sure}", "extras.sure.above=0.5")
    for name in ("accuracy.csv", "mri.csv"):
        assert (report / name).read_bytes() == (plain / name).read_bytes()
    run = campaigns.of_report(report)
    rows = pandas.read_csv(report / "sure.csv", keep_default_na=False)
    tests = of_role(run.evaluations, "test")
    expected = {}
    for row in tests:
        if row.method != PRE and row.headline and STEP not in row.setting:
            images = predictions.read_predictions(row.path).to_pandas()
            wrong = (images["top1"] != images["label"]) & (images["p_top1"] > 0.5)
            expected[row.method, row.downstream, row.evaluated_on] = int(wrong.sum())
    keys = zip(rows["method"], rows["downstream"], rows["evaluated_on"], strict=True)
    assert dict(zip(keys, rows["sure"], strict=True)) == expected and max(expected.values()) > 0
    assert ">Wrong and sure</h2>" in (report / "index.html").read_text("utf-8")

    # Showing runs no program: the section is gone, and the rows stay in the record.
    sure.write_text("raise SystemExit('it ran')")
    assert cli.main(["report", str(report.parent)]) == 0, capsys.readouterr()
    assert "Wrong and sure" not in (report / "index.html").read_text("utf-8")
    assert len(campaigns.of_report(report).record.extras["sure"]) == len(rows)


def test_the_engine_works_without_the_files_of_an_extra(tmp_path):
    """CKA goes with its folder: no other file names it."""
    for room in ("engine", "kernels", "loaders", "recipes"):
        ignore = shutil.ignore_patterns("__pycache__", "cka")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignore)
    code = """
import json, pkgutil, importlib, engine.report, engine.campaigns, engine.cells
for package in (engine.report, engine.campaigns, engine.cells):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from engine.recipe import extras, resolve
from engine.recipe.overrides import parsed
try:
    resolve.load_recipe("emoji", parsed(["extras.cka.images=112"]))
except ValueError as error:
    print(json.dumps([resolve.load_recipe("emoji").extras, [*extras.names()], str(error)]))
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    used, names, error = json.loads(run.stdout)
    assert used == {} and names == [name for name in extras.names() if name != "cka"]
    assert error.startswith("extras.cka: unknown extra")
