"""The card of an exported or merged model: README.md, whose metadata the Hugging Face Hub reads.

It says what the model is. Its numbers are in the campaign's report, and nowhere twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from engine.campaigns.record import FinishedCampaign
from engine.data import sources
from engine.data.kinds import kind_of
from engine.data.sources import Source
from engine.exchange.cards import CARD, render_card
from engine.exchange.export import DescribedModel
from engine.machine.files import write_atomic
from engine.measures.rows import PRE, Evaluation, trained_sets
from engine.model_files.architectures import open_clip_name, open_clip_package, timm_config
from engine.recipe.schema import ModelRecipe, Recipe
from loaders.files.root import Root

MARK = "<!-- Written by `rib`, which replaces a file with this line. -->"
TASK = "image-classification"
TEMPLATE = "model_card.md.j2"


def write_card(folder: Path, text: str) -> Path | None:
    """Write a card into a model's folder, unless it has a README.md that the user wrote."""
    card = folder / CARD
    if card.exists() and not _is_ours(card):
        return None
    write_atomic(card, text.encode())
    return card


def remove_card(folder: Path) -> None:
    """Remove the card of a previously exported model."""
    if _is_ours(folder / CARD):
        Root(folder).remove(folder / CARD)


def _is_ours(card: Path) -> bool:
    return card.is_file() and MARK in card.read_text("utf-8", errors="replace")


def card_of_merge(merged: DescribedModel) -> str:
    """The card of a merged model, which nobody has evaluated yet."""
    model = merged.model
    facts = [
        ("made of", merged.title),
        ("architecture", f"{model.arch}, {model.image_size} px, {len(merged.classes)} classes"),
    ]
    return render_card(
        TEMPLATE,
        _metadata(model),
        [],
        mark=MARK,
        title=merged.title,
        facts=facts,
        numbers="Nobody has evaluated this model: run `rib evaluate`.",
    )


def card_of_campaign(campaign: FinishedCampaign, row: Evaluation) -> str:
    """The card of a row's model."""
    recipe, title = campaign.plan.recipe, _title(campaign, row)
    if row.method != PRE:
        recipe = campaign.plan.rows[row.method].recipe
    trained_on = [] if row.method == PRE else trained_sets(row.downstream)
    hub = {name: source.hub for name, source in _published(recipe).items() if source.hub}
    metadata = _metadata(
        recipe.model,
        datasets=[hub.get(name, name) for name in trained_on] or None,
        model_name=title,
        **_of_weights(recipe.model),
    )
    return render_card(
        TEMPLATE,
        metadata,
        [] if row.method == PRE else [recipe.method.name],
        mark=MARK,
        title=title,
        facts=list(_facts(campaign, row, recipe)),
        numbers="Accuracies, RI and mRI with their intervals are in the campaign's report.",
        terms=list(_terms(campaign, recipe)),
    )


def _metadata(model: ModelRecipe, **values: Any) -> ModelCardData:
    return ModelCardData(
        library_name="open_clip" if open_clip_name(model.arch) else "timm",
        pipeline_tag=TASK,
        tags=[TASK, "robust-fine-tuning", "imagenet-rib"],
        **values,
    )


def _of_weights(model: ModelRecipe) -> dict[str, str]:
    """The Hub's name of the pretrained weights, and their licence, as timm and open_clip know."""
    weights = model.weights
    if weights.path or weights.source not in ("timm", "open_clip"):
        return {}
    if weights.source == "timm":
        config = timm_config(model.arch)
        values = {"base_model": config.get("hf_hub_id"), "license": config.get("license")}
    else:
        config = open_clip_package().get_pretrained_cfg(weights.clip, weights.tag)
        values = {"base_model": config.get("hf_hub", "").strip("/")}
    return {key: value for key, value in values.items() if value}


def _title(campaign: FinishedCampaign, row: Evaluation) -> str:
    if row.method == PRE:
        return f"{row.model}, not fine-tuned"
    method = campaign.record.methods[row.method]
    more = [f"alpha {row.alpha:g}"] if row.alpha is not None else []
    more += [str(row.setting)] if row.setting else []
    return f"{row.model}, fine-tuned on {row.downstream} by {', '.join([method, *more])}"


def _facts(campaign: FinishedCampaign, row: Evaluation, recipe: Recipe) -> Iterator[Sequence[str]]:
    """Facts about the model, as names and values."""
    model, record = recipe.model, campaign.record
    source = (model.weights.path and Path(model.weights.path).name) or model.weights.source
    yield "base", f"{model.name}: {model.arch}, {model.image_size} px, weights from {source}"
    if model.head.fit:
        yield "head", f"fitted on {recipe.head_set}"
    if row.method != PRE:
        variant = f"variant {row.variant}, training seed {row.seed}"
        yield "method", f"{record.methods[row.method]}, {variant}"
        yield "fine-tuned on", row.downstream
        (of_row,) = [each for each in record.rows if each.method == row.method]
        settings = {**of_row.settings, **row.setting}
        left_out = ("method.name", "method.title", "method.module", "method.variant", "seeds")
        yield "settings", ", ".join(f"{k}={v}" for k, v in settings.items() if k not in left_out)
    yield "campaign", f"`{campaign.plan.shown_command}`"
    if record.limit:
        yield "smoke run", f"at most {record.limit} images per dataset: a test of the program"
    for name in ("Versions", "Data fingerprints"):
        values = record.settings.get(name)
        if isinstance(values, Mapping):
            yield name.lower(), ", ".join(f"{key} {value}" for key, value in values.items())


def _terms(campaign: FinishedCampaign, recipe: Recipe) -> Iterator[Sequence[str]]:
    """Datasets and their terms, if known."""
    if credits := campaign.record.credits:
        for credit in credits:  # drawings and weights, by name
            licence = f"{credit.get('licence', '')} {credit.get('url', '')}"
            yield next(iter(credit.values())), licence.strip()
        return
    known = _published(recipe)
    trained = itertools.chain(*map(trained_sets, campaign.record.downstreams))
    for name in dict.fromkeys([*recipe.dataset.evaluated_sets, *trained]):
        source = known.get(name)
        yield name, f"{source.terms} ({source.page})" if source else "unknown"


def _published(recipe: Recipe) -> dict[str, Source]:
    """The sources of datasets that others published."""
    known = {
        name: each for name, each in sources.read_sources().items() if name in recipe.dataset.known
    }
    published = (name for name in known if kind_of(recipe.dataset, name).published_images())
    return {name: known[name] for name in published}
