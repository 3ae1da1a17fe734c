"""Work of other code or versions: said before a campaign starts, in status and in the report."""

import dataclasses
import json

from engine import cli
from engine.campaigns import plan_folder, record
from engine.recipe import source_code
from engine.store import made_by
from helpers import campaigns

OTHER = {"engine/training": "0" * 12, "torch": "2.0.0"}


def test_every_place_of_shared_code_is_there():
    assert all((source_code.ROOT / name).exists() for name in made_by.CODE)


def test_work_of_other_code_is_reused_with_a_word_or_made_anew(
    folder, finished, tmp_path, monkeypatch, capsys
):
    runs = campaigns.unfinished(finished, tmp_path / "runs")
    for file in runs.glob("store/*/*/done.json"):
        marker = json.loads(file.read_bytes())
        marker["made_by"] |= OTHER
        file.write_text(json.dumps(marker))
    campaigns.in_this_process(monkeypatch)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={runs}"]
    now = made_by.installed()["torch"]
    other = f"engine/training, torch 2.0.0 (now {now})"

    assert cli.main([*words, "generation=1", "--dry-run"]) == 0
    assert "other code" not in capsys.readouterr().err  # nothing is reused
    count = len([*runs.glob("store/*/*/done.json")])
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert f"shapes: other code or versions made {count} artefacts of its store ({other});" in said
    assert "reused; generation=1 makes everything anew" in said
    page = (runs / "shapes/report/index.html").read_text("utf-8")
    assert f"mix work of different code or versions: engine/training; torch 2.0.0, {now}" in page
    assert cli.main(["status", str(runs)]) == 0
    assert f"made by other code or versions ({other}): " in capsys.readouterr().out

    places = [*plan_folder.in_runs(runs)]
    (place,) = [each for each in places if each.campaign.name == "shapes"]
    of_other = record.MadeBy({**made_by.here(), **OTHER}, 7)
    finished_record = record.read_record(place).record
    record.write_record(place, dataclasses.replace(finished_record, made_by=[of_other]))
    monkeypatch.setattr("engine.campaigns.seal.finished", lambda plan: True)
    assert cli.main(words) == 0
    assert f"installed ones made 7 of its artefacts ({other})" in capsys.readouterr().err


def test_another_generation_finds_nothing(grid):
    stores = [grid.builder(f"generation={number}").store for number in (0, 1)]
    assert len({store.place("weights", "a", {}) for store in stores}) == 2
