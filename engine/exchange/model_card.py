"""The model card of `rib export`: README.md, and the Hub's `.eval_results`.

Its numbers come from the campaign's report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.campaigns import seal
from engine.campaigns.plan import RESULTS
from engine.campaigns.record import FinishedCampaign
from engine.data import sources
from engine.data.kinds import kind_of
from engine.data.sources import Source
from engine.machine.files import write_atomic
from engine.measures.rows import PRE, Evaluation
from engine.models import clip
from engine.recipe import citations, yaml_text
from engine.recipe.schema import ModelRecipe, Recipe
from engine.report import results_file
from engine.report.headline import SMOKE_RUN
from engine.report.results_file import CampaignResults, Number
from engine.report.text import counted, ends, rounded, signed
from loaders.files.root import Root

CARD, EVALUATIONS = "README.md", Path(".eval_results") / "rib.yaml"
MARK = "<!-- Written by `rib export`, which replaces a file with this line. -->"
OF_ROW = ("method", "optimizer", "train")


def write(folder: Path, campaign: FinishedCampaign, row: Evaluation) -> list[Path]:
    """Write a model's card into its folder. Returns the written files.

    Keeps a README.md that the user wrote.
    """
    results = _results(campaign)
    files = {}
    card = folder / CARD
    if not card.is_file() or _is_ours(card):
        files[card] = text(campaign, row, results)
    if entries := evaluations(campaign, row, results):
        files[folder / EVALUATIONS] = yaml_text.dump(entries)
    for file, content in files.items():
        write_atomic(file, content.encode())
    return list(files)


def remove(folder: Path) -> None:
    """Remove the card of a previously exported model."""
    card = folder / CARD
    for file in (folder / EVALUATIONS, *([card] if _is_ours(card) else [])):
        Root(folder).remove(file)


def _is_ours(card: Path) -> bool:
    return card.is_file() and MARK in card.read_text("utf-8", errors="replace")


def text(campaign: FinishedCampaign, row: Evaluation, results: CampaignResults | None) -> str:
    """The card. results: the numbers of the campaign's report, or None without a report."""
    recipe, title = campaign.plan.recipe, _title(campaign, row)
    if row.method != PRE:
        recipe = campaign.plan.rows[row.method].recipe
    front = {
        "library_name": "open_clip" if recipe.model.arch.startswith(clip.PREFIX) else "timm",
        "pipeline_tag": "image-classification",
        **_base_model(recipe.model),
        "tags": ["image-classification", "robust-fine-tuning", "imagenet-rib"],
    }
    parts = [
        f"---\n{yaml_text.dump(front)}---\n{MARK}\n\n# {title}",
        *([f"**{_smoke_run(campaign)}**"] if campaign.record.limit else []),
        _table(["", ""], _facts(campaign, row, recipe)),
        *_numbers(campaign, row, results),
        "## Data",
        _table(["dataset", "terms"], _terms(campaign, recipe)),
        "The licence of the pretrained weights also applies.",
        "## Cite",
        f"```bibtex\n{citations.bibtex([recipe.method.name] if row.method != PRE else [])}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def evaluations(
    campaign: FinishedCampaign, row: Evaluation, results: CampaignResults | None
) -> list[dict[str, Any]]:
    """The entries of `.eval_results`: accuracy on the datasets of which the Hub has a copy.

    Empty without a report, and for a smoke run.
    """
    record = campaign.record
    if results is None or record.limit:
        return []
    ids = {name: source.hub for name, source in _published(campaign.plan.recipe).items()}
    of_row = _of_row(results, row)
    return [
        {
            "dataset": {"id": ids[number.evaluated_on], "task_id": "default"},
            "value": round(number.value, 3),
            "notes": f"top-1 in percent, {_judged(campaign)}; 95% interval "
            f"{number.low:.3f} to {number.high:.3f}",
        }
        for number in of_row
        if number.quantity == "accuracy" and ids.get(number.evaluated_on)
    ]


def _title(campaign: FinishedCampaign, row: Evaluation) -> str:
    if row.method == PRE:
        return f"{row.model}, not fine-tuned"
    method = campaign.record.methods[row.method]
    more = [f"alpha {row.alpha:g}"] if row.alpha is not None else []
    more += [str(row.setting)] if row.setting else []
    return f"{row.model}, fine-tuned on {row.downstream} by {', '.join([method, *more])}"


def _base_model(model: ModelRecipe) -> dict[str, str]:
    is_timms = model.weights.source == "timm" and not model.weights.path
    return {"base_model": f"timm/{model.arch}"} if is_timms else {}


def _smoke_run(campaign: FinishedCampaign) -> str:
    sentence = SMOKE_RUN.format(campaign.record.limit)
    return f"{sentence[:1].upper()}{sentence[1:]}."


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
        yield "settings", ", ".join(_settings(campaign, row))
    yield "campaign", f"`{campaign.plan.command}`"
    for name in ("Versions", "Data fingerprints"):
        values = record.settings.get(name)
        if isinstance(values, Mapping):
            yield name.lower(), ", ".join(f"{key} {value}" for key, value in values.items())


def _settings(campaign: FinishedCampaign, row: Evaluation) -> list[str]:
    (of_row,) = [each for each in campaign.record.rows if each.method == row.method]
    values = {**of_row.settings, **row.setting}
    left_out = ("method.name", "method.title", "method.module", "method.variant")
    return [f"{k}={v}" for k, v in values.items() if k not in left_out and k != "seeds"]


def _of_row(results: CampaignResults, row: Evaluation) -> list[Number]:
    """The numbers of the exported model: per dataset, and their means."""
    arm = row.model, row.method, row.variant, row.alpha, str(row.setting)
    return [
        number
        for number in results.numbers
        if (number.model, number.method, number.variant, number.alpha, number.setting) == arm
        and number.downstream in (row.downstream, "")
    ]


def _judged(campaign: FinishedCampaign) -> str:
    images = "images held out of training" if campaign.record.holdout else "all images"
    return f"over the classes of each dataset, on {images}"


def _numbers(
    campaign: FinishedCampaign, row: Evaluation, results: CampaignResults | None
) -> Iterator[str]:
    """Accuracy per dataset, RI and mRI with their conditions."""
    yield "## Results"
    if results is None:
        yield "This card has no numbers, because the campaign had no report: run `rib report`."
        return
    of_row = _of_row(results, row)
    before = {
        number.evaluated_on: number
        for number in results.numbers
        if number.quantity == "accuracy" and number.method == PRE and number.model == row.model
    }
    after = {n.evaluated_on: n for n in of_row if n.quantity == "accuracy" and n.downstream}
    after = before if row.method == PRE else after
    yield f"Top-1 accuracy in percent {_judged(campaign)}, with 95% intervals."
    rows = [
        [name, *(_percent(of[name]) for of in ([before] if after is before else [before, after]))]
        for name in [results.upstream, *results.sets]
        if name in before and name in after
    ]
    yield _table(["dataset", "before fine-tuning", "after"][: len(rows[0])], rows)
    seeds = f", means over {len(results.seeds)} training seeds" * (len(results.seeds) > 1)
    for number in of_row:
        points = f"{signed(number.value)} points (95% interval {ends(number.low, number.high)})"
        if number.quantity == "RI" and number.downstream:
            yield f"RI of this model{seeds}: {points}. The interval covers {results.intervals}."
        if number.quantity == "mRI":
            columns = counted("downstream dataset", len(results.downstreams))
            yield (
                f"mRI of the method, its mean RI over {columns}{seeds}: {points}. The interval "
                f"covers {results.intervals_of_mri}."
            )


def _percent(number: Number) -> str:
    return f"{rounded(number.value)} [{rounded(number.low)}, {rounded(number.high)}]"


def _terms(campaign: FinishedCampaign, recipe: Recipe) -> Iterator[Sequence[str]]:
    """Datasets and their terms, if known."""
    if credits := campaign.record.credits:
        for credit in credits:  # drawings and weights, by name
            licence = f"{credit.get('licence', '')} {credit.get('url', '')}"
            yield next(iter(credit.values())), licence.strip()
        return
    known = _published(recipe)
    for name in dict.fromkeys([*recipe.dataset.evaluated_sets, *campaign.record.downstreams]):
        source = known.get(name)
        yield name, f"{source.terms} ({source.page})" if source else "unknown"


def _published(recipe: Recipe) -> dict[str, Source]:
    """The sources of datasets that others published."""
    kind = kind_of(recipe.dataset)
    known = {name: each for name, each in sources.read().items() if name in recipe.dataset.known}
    return {name: each for name, each in known.items() if kind.published_images(name)}


def _results(campaign: FinishedCampaign) -> CampaignResults | None:
    """The numbers of the campaign's report; None if it is missing or was changed."""
    if not seal.is_shown(campaign.place):
        return None
    file = campaign.place.report / RESULTS
    return results_file.read(file.read_bytes()) if file.is_file() else None


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
