"""The card of an exported model says what it is and where its numbers are."""

import dataclasses
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from engine.campaigns.record import MethodRow
from engine.data import sources
from engine.exchange.export import DescribedModel
from engine.exchange.model_card import (
    card_of_campaign,
    card_of_merge,
    remove_card,
    write_card,
)
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe
from helpers import reports

SETTINGS = {"method.name": "ewc", "method.variant": "original", "method.lam": 1.0}
SETTINGS |= {"optimizer.name": "sgd", "optimizer.lr": 1e-3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished campaign with a plan of emoji-RIB's."""
    run = reports.finished(
        tmp_path_factory.mktemp("runs"), rows=[MethodRow("ewc", SETTINGS)], holdout=True
    )
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
    return write_card(folder, card_of_campaign(run, row(run, "ewc", "mono")))


def test_a_card_has_what_the_hub_reads_and_how_the_model_was_made(run, tmp_path):
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
    assert "are in the campaign's report." in text


def test_a_pre_trained_models_card_names_no_method(run):
    text = card_of_campaign(run, row(run, "pretrained"))
    assert "lite0, not fine-tuned" in text and "| method |" not in text


def test_the_card_of_a_model_that_was_there_goes_and_a_users_own_stays(run, tmp_path):
    card = written(run, tmp_path)
    remove_card(tmp_path)
    assert not card.exists()
    card.write_text("mine")
    remove_card(tmp_path)
    assert written(run, tmp_path) is None and card.read_text() == "mine"


def test_a_smoke_runs_card_says_so(run):
    few = planned(run, run.plan.recipe, limit=20)
    text = card_of_campaign(few, row(run, "ewc", "mono"))
    assert "| smoke run | at most 20 images per dataset" in text


def test_the_hub_reads_licence_base_model_and_data_sets(run, tmp_path):
    recipe = load_recipe("imagenet_rib/ewc", parsed(["model=vit_b16_clip_openai"]))
    on_v2 = dataclasses.replace(row(run, "ewc", "mono"), downstream="imagenet_v2")
    write_card(tmp_path, card_of_campaign(planned(run, recipe), on_v2))
    data, hubs = ModelCard.load(tmp_path / "README.md").data, sources.read_sources()
    assert data.base_model == "timm/vit_base_patch16_clip_224.openai_ft_in1k"
    assert data.license == "apache-2.0" and data.datasets == [hubs["imagenet_v2"].hub]


def test_a_merged_models_card_says_what_it_is_made_of(tmp_path):
    model = ModelRecipe(name="m", arch="test_vit", image_size=32)
    merged = DescribedModel("Soup of 0.5 a|b\n + 0.5 \x1b[31mc", {}, model, ["x", "y"], {})
    card = ModelCard.load(write_card(tmp_path, card_of_merge(merged)))
    assert card.data.library_name == "timm" and card.data.eval_results is None
    assert "| made of | Soup of 0.5 a/b\\n + 0.5 \\x1b[31mc |" in card.text
    assert "Nobody has evaluated this model" in card.text and "## Data" not in card.text
