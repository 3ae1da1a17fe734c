"""The card of an exported model has the report's numbers, and says what they rest on."""

import dataclasses
from types import SimpleNamespace

import msgspec
import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries

from engine.campaigns.record import Row
from engine.data import sources
from engine.exchange import model_card
from engine.recipe import load, parsed, yaml_text
from engine.report import finish, results_file
from engine.report.results import of_campaign
from helpers import reports

SETTINGS = {"method.name": "ewc", "method.variant": "canonical", "method.lam": 1.0}
SETTINGS |= {"optimizer.name": "sgd", "optimizer.lr": 1e-3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished campaign with a report, and a plan of emoji-RIB's."""
    run = reports.finished(
        tmp_path_factory.mktemp("runs"), rows=[Row("ewc", SETTINGS)], holdout=True
    )
    finish.write(run, of_campaign(run))
    cell = SimpleNamespace(recipe=load("emoji", parsed([]), method="ewc"))
    run.__dict__["plan"] = SimpleNamespace(
        recipe=cell.recipe, rows=dict.fromkeys(reports.TITLES, cell), command="rib campaign drawn"
    )
    return run


def row(run, method, downstream=""):
    rows = run.record.evaluations
    return next(r for r in rows if (r.method, r.downstream) == (method, downstream))


def test_a_card_has_what_the_hub_reads_and_the_reports_numbers(run, tmp_path):
    (card,) = model_card.write(tmp_path, run, row(run, "ewc", "mono"))
    read = ModelCard.load(card)
    assert read.data.library_name == "timm" and read.data.base_model is None, "weights of PyPI"
    text = card.read_text("utf-8")
    assert "# lite0, fine-tuned on mono by EWC & co" in text
    assert (
        "method.lam=1.0, optimizer.name=sgd, optimizer.lr=0.001" in text
        and "rib campaign drawn" in text
    )
    assert "@article{kirkpatrick2017ewc" in text and "@article{hwang2024rib" in text
    assert "| flat | MIT https://example.org/a?b=1&c=2 |" in text
    stored = results_file.read((run.place.report / "results.json").read_bytes())
    (mri,) = [n for n in stored.numbers if (n.quantity, n.method) == ("mRI", "ewc")]
    assert (
        f"mRI of the method, its mean RI over 3 downstream datasets: +{mri.value:.1f} points"
        in text
    )
    assert f"The interval covers {stored.intervals_of_mri}." in text
    assert "on images held out of training" in text
    after = next(
        n for n in stored.numbers
        if (n.quantity, n.method, n.downstream, n.evaluated_on)
        == ("accuracy", "ewc", "mono", "sketch")
    )  # fmt: skip
    assert f"| {after.value:.1f} [{after.low:.1f}, {after.high:.1f}] |" in text


def test_a_pre_trained_models_card_claims_no_ri(run):
    results = results_file.read((run.place.report / "results.json").read_bytes())
    text = model_card.text(run, row(run, "pre"), results)
    assert "lite0, not fine-tuned" in text and "mRI of" not in text and "RI of this" not in text
    assert "| dataset | before fine-tuning |" in text


def test_without_a_whole_report_there_are_no_numbers(run, tmp_path):
    page = run.place.report / "index.html"
    before = page.read_bytes()
    page.write_bytes(before + b" ")
    (card,) = model_card.write(tmp_path, run, row(run, "ewc", "mono"))
    page.write_bytes(before)
    assert "no numbers, because the campaign had no report" in card.read_text("utf-8")


def test_a_users_own_readme_stays(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert model_card.write(tmp_path, run, row(run, "ewc", "mono")) == []
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_of_a_model_that_was_there_goes_and_a_users_own_stays(run, tmp_path):
    (card,) = model_card.write(tmp_path, run, row(run, "ewc", "mono"))
    (tmp_path / ".eval_results").mkdir()
    (tmp_path / model_card.EVALUATIONS).touch()
    model_card.remove(tmp_path)
    assert not card.exists() and not (tmp_path / model_card.EVALUATIONS).exists()
    card.write_text("mine")
    model_card.remove(tmp_path)
    assert card.read_text() == "mine"


def test_a_smoke_runs_card_says_so(run):
    few = dataclasses.replace(run, record=dataclasses.replace(run.record, limit=20))
    few.__dict__["plan"] = run.plan
    results = results_file.read((run.place.report / "results.json").read_bytes())
    evaluation = row(run, "ewc", "mono")
    assert "**This is a smoke run on at most 20" in model_card.text(few, evaluation, results)


def test_the_hub_reads_the_evaluations_of_sets_that_it_has(run):
    results = results_file.read((run.place.report / "results.json").read_bytes())
    evaluation = row(run, "ewc", "mono")
    assert model_card.evaluations(run, evaluation, results) == [], "the Hub has no emoji-RIB"
    rename = {"flat": "imagenet_r", "mono": "imagenet_v2", "sketch": "imagenet_c", "up": "x"}
    renamed = [
        msgspec.structs.replace(number, evaluated_on=rename.get(number.evaluated_on, ""))
        for number in results.numbers
    ]
    of_imagenet = SimpleNamespace(
        record=run.record, plan=SimpleNamespace(recipe=load("imagenet_rib"))
    )
    changed = msgspec.structs.replace(results, numbers=renamed)
    entries = model_card.evaluations(of_imagenet, evaluation, changed)
    parsed_entries = parse_eval_result_entries(yaml_text.parse(yaml_text.dump(entries), "x"))
    hubs = {name: source.hub for name, source in sources.read().items()}
    assert {e.dataset_id for e in parsed_entries} == {hubs["imagenet_r"], hubs["imagenet_v2"]}
    assert all(0 <= e.value <= 100 and "95% interval" in e.notes for e in parsed_entries)
