"""Snapshots in a campaign: they are evaluated, their weights removed, and nothing trains twice."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from engine.campaigns import job_states, make_record, parts
from engine.campaigns.column_job import builders
from engine.campaigns.plan import DISTANCES, PREPARE, Plan
from engine.campaigns.record import Record
from engine.measures.rows import PLAIN, Setting
from engine.training import loop
from helpers import campaigns

STEPS = [1, 2, 6]  # of 25 images in batches of 12, two epochs; `few` has 15, and ends with step 4


@dataclass
class Campaign:
    """A campaign on a store of its own. trained: the sets that the last run fine-tuned on."""

    file: Path
    runs: Path
    trained: list[str] = field(default_factory=list)

    def run(self, *words: str, methods: str = "fine_tune") -> Plan:
        words = (f"runs={self.runs}", f"methods=[{methods}]", "downstreams=[outline,few]", *words)
        plan = campaigns.plan_of(self.file, *words)
        self.trained.clear()
        for column in plan.columns:
            campaigns.do(plan, column.job)
            job_states.set_done(plan.place, column.job)
        return plan

    def folders(self, kind: str, pattern: str = "*") -> list[Path]:
        return sorted((self.runs / "store" / kind).glob(pattern))


@pytest.fixture(scope="module")
def base(folder, grid) -> Campaign:
    """With what all columns share."""
    text = (folder / "shapes.yaml").read_text()
    case = Campaign(folder / "followed.yaml", folder / "base")
    case.file.write_text(text.replace("fine_tune: {}", "fine_tune: {train: {snapshots: 3}}"))
    campaigns.do(campaigns.plan_of(case.file, f"runs={case.runs}"), PREPARE)
    return case


@pytest.fixture
def followed(base, tmp_path, monkeypatch) -> Campaign:
    case, fit = Campaign(base.file, shutil.copytree(base.runs, tmp_path / "runs")), loop.fit

    def counted(method, run, *rest):
        if not method.fits_head and run.recipe.method.name == "fine_tune":
            case.trained.append(run.recipe.downstream)
        return fit(method, run, *rest)

    monkeypatch.setattr(loop, "fit", counted)
    return case


ALL = ["outline", "few"]


def record_of(plan: Plan) -> Record:
    campaigns.do(plan, PREPARE)
    campaigns.do(plan, DISTANCES)
    return make_record.record_of(plan)


def test_snapshots_are_evaluated_and_their_weights_removed(followed):
    """Of methods in the table alone; to train takes a prediction that is gone, not weights."""
    hidden = followed.run(methods="wise_ft")
    assert not any(row.setting for row in record_of(hidden).evaluations)
    for trained in (ALL, []):
        plan = followed.run(methods="fine_tune,wise_ft")
        assert followed.trained == trained and not followed.folders("snapshots")
    rows = record_of(plan).evaluations
    steps = [Setting(step=step) for step in STEPS]
    during = [row for row in rows if row.setting]
    assert len(during) == len(STEPS) * len(ALL) * (len(campaigns.SETS) + 1)
    assert {(row.method, row.headline) for row in during} == {("fine_tune", False)}
    paths = {
        (row.setting, row.downstream): row.path for row in rows
        if (row.method, row.evaluated_on) == ("fine_tune", "tinted")
    }  # fmt: skip
    for downstream in ALL:
        of_steps = [paths[step, downstream] for step in steps]
        assert len(set(of_steps)) == len(STEPS)
        assert of_steps[-1] == paths[PLAIN, downstream], "the last point is the cell itself"
    (plan.place.path / parts.FOLDER / "column-outline.json").unlink()  # the longer training
    partial = make_record.of_finished_columns(plan)
    assert {row.setting for row in partial.evaluations} == {PLAIN, *steps}
    assert partial.downstreams == ["few"] and [m.column for m in partial.missing] == ["outline"]
    (gone,) = followed.folders("predictions", "fine_tune-outline-step2-on-few-*")
    before = (gone / "part-00000.parquet").read_bytes()
    shutil.rmtree(gone)
    followed.run()
    assert followed.trained == ["outline"] and not followed.folders("snapshots")
    assert (gone / "part-00000.parquet").read_bytes() == before


def test_snapshots_have_their_cka_with_the_pretrained_model(followed):
    """Also those whose predictions were there, and whose weights are gone: they train again."""
    words = ("extras.cka.images=6", "evaluate.batch_size=8")
    followed.run("evaluate.batch_size=8")
    plan = followed.run(*words)
    assert followed.trained == ALL and not followed.folders("snapshots")
    plan = followed.run(*words)
    assert not followed.trained
    rows = [row for row in record_of(plan).extras["cka"] if row["evaluated_on"] == "tinted"]
    blocks = {(row["downstream"], row["setting"].get("step")): row["blocks"] for row in rows}
    assert set(blocks) == {(name, step) for name in ALL for step in (None, *STEPS)}
    for name in ALL:
        assert blocks[name, STEPS[-1]] == blocks[name, None], "the last point is the cell itself"
        means = [sum(blocks[name, step].values()) for step in STEPS]
        assert means[0] > means[-1], "the first step changes features least"


def test_the_rows_under_any_name_are_followed_and_what_they_need_is_not(followed):
    """A stock's models of other seeds have no points on a curve, and nobody would remove theirs."""
    text = followed.file.read_text().partition("methods:")[0]
    rows = "  model_stock: {}\n  fine_tune: {train: {snapshots: 3}}\n  again: {base: fine_tune}\n"
    file = followed.file.with_name("based.yaml")
    file.write_text(f"{text}methods:\n{rows}")
    words = (f"runs={followed.runs}", "methods=[model_stock,again]")
    plan = campaigns.plan_of(file, *words)
    stock, again = builders(plan, torch.device("cpu"), plan.columns[0])
    assert again._follows_training
    assert not stock.sibling("fine_tune", 1000)._follows_training


def test_what_was_made_without_snapshots_trains_again(followed):
    followed.run("train.snapshots=0")
    cells = followed.folders("cells")
    followed.run()
    assert followed.trained == ALL and followed.folders("cells") == cells


def test_weights_are_kept_on_request_and_while_they_are_not_evaluated(followed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("engine.cells.build.Builder.entries", lambda *_: [].index("interrupted"))
        with pytest.raises(ValueError):
            followed.run()
    assert followed.trained == ["outline"] and len(followed.folders("snapshots")) == 2
    followed.run("train.keep_snapshots=true")
    assert followed.trained == ["few"]
    weights = followed.folders("snapshots", "*/weights.safetensors")
    assert len(weights) == 2 * 2
    for table in followed.folders("predictions", "fine_tune-few-step*"):
        shutil.rmtree(table)
    followed.run("train.keep_snapshots=true")
    assert not followed.trained
    assert followed.folders("snapshots", "*/weights.safetensors") == weights
    followed.run()
    assert not followed.trained and not followed.folders("snapshots")
