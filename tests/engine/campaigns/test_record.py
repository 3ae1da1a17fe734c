"""Tables from a finished campaign's record and store alone: without torch, packs or drawings."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns import record
from engine.campaigns.find_campaign import find_campaign
from engine.campaigns.plan import REPORT
from engine.recipe.overrides import parsed
from helpers import reports
from helpers.processes import WITHOUT_TORCH, run
from loaders.files import typed_json
from loaders.files.typed_json import DamagedFile

METRICS = """
import sys

def hide(event, arguments, folders=tuple(sys.argv.pop(1).split(":"))):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(folders):
        raise AssertionError(f"{arguments[0]} was read")

sys.addaudithook(hide)
from engine import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def files(report: Path) -> dict[str, bytes]:
    paths = (path for path in report.rglob("*") if path.is_file())
    return {str(path.relative_to(report)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_all_files_of_a_report_byte_for_byte_without_torch_packs_and_drawings(
    folder, finished, tmp_path
):
    expected = files(finished / "shapes" / REPORT)
    assert {"accuracy.csv", "mri.csv", "index.html", "comparisons.csv"} < expected.keys()
    moved = tmp_path / "moved"  # of the store, predictions; of the campaign, its plan and record
    shutil.copytree(finished / "store/predictions", moved / "store/predictions")
    for file in finished.glob("shapes/plans/*/*.json"):
        place = moved / file.relative_to(finished)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    hidden = f"{(folder / 'images').resolve()}:{finished}"
    command = ["report", str(folder / "shapes.yaml"), f"runs={moved}", "--compare"]
    program = [sys.executable, "-c", METRICS, hidden, *command]
    process = run(program, **WITHOUT_TORCH)
    assert process.returncode == 0, process.stderr
    assert expected["table.txt"].decode() in process.stdout
    assert "paired over the same" in process.stdout
    actual = files(moved / "shapes" / REPORT)
    assert [name for name in expected | actual if actual.get(name) != expected.get(name)] == []


@pytest.mark.slow
def test_a_campaign_goes_by_its_folders_name_and_may_be_read_only(
    finished, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "runs" / "shapes")
    assert cli.main(["report", "shapes"]) == 2
    assert "is read-only: give a folder for the report with --out DIR" in capsys.readouterr().err
    assert cli.main(["report", "shapes", "--out", "there"]) == 0
    assert Path("there/index.html").is_file()
    assert cli.main(["export", "shapes", "--method", "pretrained", "--out", "model"]) == 2
    error = capsys.readouterr().err
    assert "runs/shapes is a folder, which `rib campaign " in error
    assert "shapes.yaml" in error and "give the campaign's name and overrides" in error


@pytest.mark.slow
def test_what_was_not_finished_or_is_not_what_it_was_is_refused_with_the_remedy(
    folder, finished, capsys
):
    def metrics(*words: str) -> tuple[int, str]:
        code = cli.main(["report", str(folder / "shapes.yaml"), *words])
        return code, capsys.readouterr().err

    runs = f"runs={finished}"
    capsys.readouterr()  # of the fixtures, where this is the first test
    assert metrics(runs) == metrics("seeds=1", runs) == (0, ""), "seeds=1 says what is so anyway"
    code, error = metrics(runs, "train.epochs=3")
    assert code == 2 and "but one with other settings; run `rib campaign" in error
    assert "train.epochs=3` to finish it" in error
    code, error = metrics(f"runs={folder / 'none'}")
    assert code == 2 and "contains no finished run" in error and "other settings" not in error
    find_campaign(str(folder / "shapes.yaml"), parsed([runs])).place.record.unlink()
    code, error = metrics(runs)
    assert code == 2 and "`rib campaign" in error


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["evaluations"][0].update(seed="0"),
        lambda values: values["files"].update({"/etc/passwd": "0"}),  # was read, wherever it is
        lambda values: values["artifacts"].append("cells/../../outside"),
        lambda values: values["sets"].append("../outside"),
    ],
)
def test_a_record_of_other_types_or_with_paths_that_lead_out_is_refused_by_name(change, tmp_path):
    run = reports.finished(tmp_path, downstreams=list(reports.SETS))
    file = run.place.record
    values = json.loads(file.read_text())
    del values["sha256"]
    change(values)
    file.write_bytes(typed_json.with_digest(values))
    with pytest.raises(DamagedFile, match=f"^{file} .*; delete it and run `rib campaign` again"):
        record.read_record(run.place)
