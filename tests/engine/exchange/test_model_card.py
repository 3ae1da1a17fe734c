"""The card of an exported model has the report's numbers, and says what they rest on."""

import dataclasses
from types import SimpleNamespace

import msgspec
import pytest
from huggingface_hub import ModelCard

from engine.campaigns.events import Sealed, append_event, read_events
from engine.campaigns.plan import REPORT
from engine.campaigns.record import MethodRow
from engine.data import sources
from engine.exchange.export import DescribedModel
from engine.exchange.model_card import (
    card_of_campaign,
    card_of_merge,
    remove_card,
    results_of,
    write_card,
)
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe
from engine.report import finish
from engine.report.results import of_campaign
from helpers import reports
from loaders.files.typed_json import DamagedFile

SETTINGS = {"method.name": "ewc", "method.variant": "original", "method.lam": 1.0}
SETTINGS |= {"optimizer.name": "sgd", "optimizer.lr": 1e-3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished campaign with a report, and a plan of emoji-RIB's."""
    run = reports.finished(
        tmp_path_factory.mktemp("runs"), rows=[MethodRow("ewc", SETTINGS)], holdout=True
    )
    finish.write(run, of_campaign(run))
    return planned(run, load_recipe("emoji", method="ewc"))


def planned(run, recipe, **changes):
    """The campaign with a plan of this recipe and changes of its record."""
    run = dataclasses.replace(run, record=dataclasses.replace(run.record, **changes))
    rows = dict.fromkeys(reports.TITLES, SimpleNamespace(recipe=recipe))
    plan = SimpleNamespace(recipe=recipe, rows=rows, shown_command="rib campaign drawn")
    run.__dict__["plan"] = plan
    return run


def row(run, method, downstream=""):
    rows = run.record.evaluations
    return next(r for r in rows if (r.method, r.downstream) == (method, downstream))


def written(run, folder):
    """The card of EWC on mono."""
    return write_card(folder, card_of_campaign(run, row(run, "ewc", "mono"), results_of(run)))


def test_a_card_has_what_the_hub_reads_and_the_reports_numbers(run, tmp_path):
    card = written(run, tmp_path)
    read = ModelCard.load(card)
    assert read.data.library_name == "timm" and read.data.base_model is None, "weights of PyPI"
    text = card.read_text("utf-8")
    assert "# lite0, fine-tuned on mono by EWC & co" in text
    assert (
        "method.lam=1.0, optimizer.name=sgd, optimizer.lr=0.001" in text
        and "rib campaign drawn" in text
    )
    assert "@article{kirkpatrick2017ewc" in text and "@article{hwang2026rib" in text
    assert "| flat | MIT https://example.org/a?b=1&c=2 |" in text
    stored = results_of(run)
    (mri,) = [n for n in stored.numbers if (n.quantity, n.method) == ("mRI", "ewc")]
    assert (
        f"mRI of the method, its mean RI over 3 downstream datasets: +{mri.value:.1f} points"
        in text
    )
    assert f"The interval covers {stored.intervals_of_mri}." in text
    assert "on images that it was not trained on" in text
    after = next(
        n for n in stored.numbers
        if (n.quantity, n.method, n.downstream, n.evaluated_on)
        == ("accuracy", "ewc", "mono", "sketch")
    )  # fmt: skip
    assert f"| {after.value:.1f} [{after.low:.1f}, {after.high:.1f}] |" in text


def test_a_pre_trained_models_card_claims_no_ri(run):
    text = card_of_campaign(run, row(run, "pretrained"), results_of(run))
    assert "lite0, not fine-tuned" in text and "mRI of" not in text and "RI of this" not in text
    assert "| dataset | before fine-tuning |" in text


def test_without_a_whole_report_there_are_no_numbers(run, tmp_path):
    page = run.place.report / "index.html"
    before = page.read_bytes()
    page.write_bytes(before + b" ")
    card = written(run, tmp_path)
    page.write_bytes(before)
    assert "no numbers, because the campaign had no report" in card.read_text("utf-8")


def test_the_card_of_a_model_that_was_there_goes_and_a_users_own_stays(run, tmp_path):
    card = written(run, tmp_path)
    remove_card(tmp_path)
    assert not card.exists()
    card.write_text("mine")
    remove_card(tmp_path)
    assert written(run, tmp_path) is None and card.read_text() == "mine"


def test_a_smoke_runs_card_says_so(run):
    few = planned(run, run.plan.recipe, limit=20)
    text = card_of_campaign(few, row(run, "ewc", "mono"), results_of(run))
    assert "**This is a smoke run on at most 20" in text and "model-index" not in text


def test_the_hub_reads_results_licence_base_model_and_data_sets(run, tmp_path):
    results, evaluation = results_of(run), row(run, "ewc", "mono")
    rename = {
        "flat": "imagenet_r",
        "mono": "imagenet_v2",
        "sketch": "imagenet_c",
        "up": "imagenet_val",
    }
    renamed = [
        msgspec.structs.replace(
            number,
            evaluated_on=rename.get(number.evaluated_on, ""),
            downstream=rename.get(number.downstream, ""),
        )
        for number in results.numbers
    ]
    recipe = load_recipe("imagenet_rib/ewc", parsed(["model=vit_b16_clip_openai"]))
    changed = msgspec.structs.replace(results, numbers=renamed)
    on_v2 = dataclasses.replace(evaluation, downstream="imagenet_v2")
    write_card(tmp_path, card_of_campaign(planned(run, recipe), on_v2, changed))
    data, hubs = ModelCard.load(tmp_path / "README.md").data, sources.read_sources()
    assert data.base_model == "timm/vit_base_patch16_clip_224.openai_ft_in1k"
    assert data.license == "apache-2.0" and data.datasets == [hubs["imagenet_v2"].hub]
    read = {(e.dataset_name, e.metric_type): e for e in data.eval_results}
    assert read.keys() == {
        ("imagenet_r", "accuracy"), ("imagenet_v2", "accuracy"), ("imagenet_c", "accuracy"),
        ("imagenet_val", "accuracy"), ("imagenet_rib", "RI"), ("imagenet_rib", "mRI"),
    }  # fmt: skip
    assert read["imagenet_r", "accuracy"].dataset_type == hubs["imagenet_r"].hub
    (mri,) = [n for n in results.numbers if (n.quantity, n.method) == ("mRI", "ewc")]
    entry = read["imagenet_rib", "mRI"]
    assert entry.metric_value == round(mri.value, 3)
    assert entry.metric_args == {"low_95": round(mri.low, 3), "high_95": round(mri.high, 3)}


def test_no_number_comes_through_a_link_or_from_a_file_without_end(run, tmp_path, monkeypatch):
    """A report's seal that leaves a file out says nothing about it."""
    file = run.place.report / "results.json"
    before, events = file.read_bytes(), read_events(run.place, REPORT)
    (*_, sealed) = (event for event in events if isinstance(event, Sealed))
    rest = {name: sha256 for name, sha256 in sealed.files.items() if name != "results.json"}
    append_event(run.place, REPORT, Sealed(files=rest))
    outside = tmp_path / "results.json"
    outside.write_bytes(before)
    file.unlink()
    file.symlink_to(outside)
    try:
        with pytest.raises(DamagedFile, match=r"results\.json"):
            results_of(run)
        file.unlink()
        with file.open("wb") as hole:
            hole.truncate(40 << 30)
        with pytest.raises(DamagedFile, match=r"results\.json"):
            results_of(run)
    finally:
        file.unlink()
        file.write_bytes(before)
        append_event(run.place, REPORT, sealed)


def test_a_merged_models_card_says_what_it_is_made_of(tmp_path):
    model = ModelRecipe(name="m", arch="test_vit", image_size=32)
    merged = DescribedModel("Soup of 0.5 a|b\n + 0.5 \x1b[31mc", {}, model, ["x", "y"], {})
    card = ModelCard.load(write_card(tmp_path, card_of_merge(merged)))
    assert card.data.library_name == "timm" and card.data.eval_results is None
    assert "| made of | Soup of 0.5 a/b\\n + 0.5 \\x1b[31mc |" in card.text
    assert "nobody has evaluated it" in card.text and "## Data" not in card.text
