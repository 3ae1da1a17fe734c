"""Jobs that a new plan need not run, by plans and records of made campaigns."""

from pathlib import Path

import pytest

from engine.campaigns import reuse
from engine.campaigns.parts import Distances, Models, Preparation, write_part
from engine.campaigns.plan import DISTANCES, PREPARE, Plan, plan_to_json
from engine.machine.files import write_atomic
from engine.store import artifacts
from engine.store.artifacts import Store
from helpers.campaigns import plan_of
from helpers.runs_folders import finish
from loaders.files.names import identifier

SHARED = [PREPARE, DISTANCES]
WORDS = ("dataset.sets=[twemoji,openmoji,noto-mono]", "methods=[fine_tune,ewc,soup]")
COLUMNS = ["column-twemoji", "column-openmoji", f"column-{identifier('noto-mono')}"]


def planned(runs: Path, *words: str) -> Plan:
    return plan_of("emoji", f"runs={runs}", *WORDS, "replicates=0", *words)


@pytest.fixture
def artifact(tmp_path) -> Path:
    """The only artefact of a finished campaign of `WORDS`."""
    plan = planned(tmp_path)
    write_atomic(plan.place.plan, plan_to_json(plan))
    made = Store(plan.place.store).make("cells", "a", {}, lambda to: (to / "x").write_bytes(b"x"))
    finish(plan, [f"cells/{made.name}"])
    models = Models([], {}, {method: [] for method in plan.methods})
    prepared = Preparation(models, "", "", [], "cpu", {}, "", {}, {}, [], "")
    for name, part in {PREPARE: prepared, DISTANCES: Distances(None)}.items():
        write_part(plan.place, name, part)
    for column in plan.columns:
        write_part(plan.place, column.job, models)
    return made.folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("methods=[ewc,soup]",), [*SHARED, *COLUMNS]),
        (("methods=[soup]", "downstreams=[openmoji]"), [*SHARED, COLUMNS[1]]),
        (("methods=[ewc,lora]",), []),
        (("methods=[ewc,soup]", "train.epochs=3"), []),
        (("methods=[ewc,soup]", "seeds=2"), []),
        (("methods=[ewc,soup]", "device=cuda"), []),
        (("methods=[ewc,soup]", "replicates=1"), [*SHARED, *COLUMNS]),  # its column is new
        (("methods=[ewc,soup]", "trackers=[tensorboard]"), []),  # which logs what is made
    ],
)
def test_jobs_of_rows_and_columns_that_a_finished_campaign_has(artifact, tmp_path, words, expected):
    assert list(reuse.parts_of(planned(tmp_path, *words))) == expected


def test_a_campaign_that_scores_other_images_gives_none(artifact, tmp_path):
    plan = planned(tmp_path, "methods=[soup]", "downstreams=[openmoji]")
    assert list(reuse.parts_of(plan)) == [*SHARED, COLUMNS[1]]
    fewer = planned(tmp_path, "methods=[soup]", "downstreams=[openmoji]", "trained_on=[openmoji]")
    assert fewer.recipes[0][0][0].split_of("twemoji") == "all" and reuse.parts_of(fewer) == {}


def test_a_campaign_of_another_format_gives_none(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "FORMAT", artifacts.FORMAT + 1)
    assert reuse.parts_of(planned(tmp_path, "methods=[ewc,soup]")) == {}


def test_a_campaign_that_lacks_an_artefact_or_has_not_finished_gives_none(artifact, tmp_path):
    plan = planned(tmp_path, "methods=[ewc,soup]")
    (artifact / "done.json").unlink()
    assert reuse.parts_of(plan) == {}
    planned(tmp_path).place.record.unlink()
    assert reuse.parts_of(plan) == {}
