"""Evaluate all models of a finished campaign on a user's datasets, without training.

The record names each row's predictions, and these name the cells of the row's model. New datasets
are not part of RI, so the campaign's numbers do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from engine.campaigns.record import FinishedCampaign
from engine.evaluation import accuracies, bank
from engine.evaluation.accuracies import EvaluatedModel, OnSet
from engine.exchange import export, user_models
from engine.measures import predictions
from engine.measures.rows import PRE, TEST, of_role
from engine.store.artifacts import Store


def evaluate(
    campaign: FinishedCampaign,
    places: Mapping[str, Path],
    device: torch.device,
    *,
    mask: str = "none",
    intervals: bool = False,
    undecodable: str = "refuse",
) -> list[OnSet]:
    """Evaluate every row of a finished campaign on every dataset, pretrained model first.

    Leaves out snapshots, whose weights may have been removed.

    places: by name, folders with <class>/<image>, or packs. undecodable: `refuse` or `skip` images
    in them that cannot be decoded. Raises ValueError for the name of a dataset of the campaign,
    classes that the head lacks, and missing predictions; FileNotFoundError for missing cells.
    """
    dataset = campaign.plan.recipe.dataset
    for name in places:
        if name in (*dataset.evaluated_sets, *dataset.probe_sets):
            raise ValueError(
                f"{name} is a dataset of the campaign, whose numbers are in "
                f"{campaign.place.report}; give your dataset another name, as in "
                f"--sets NAME={places[name]}"
            )
    resolved = campaign.plan.recipe
    store = Store(campaign.place.store, resolved.generation)
    reading = replace(resolved, dataset=replace(resolved.dataset, undecodable=undecodable))
    models = _models(campaign)
    cells = {name: bank.stored_cell(store, name) for model in models for name in model.mix}
    return accuracies.evaluate(
        resolved,
        store,
        models,
        {name: user_models.pack_at(reading, place) for name, place in places.items()},
        device,
        base=cells[next(iter(models[0].mix))],
        classes=export.model_of(cells.values(), resolved)[1],
        mask=mask,
        intervals=intervals,
    )


def _models(campaign: FinishedCampaign) -> list[EvaluatedModel]:
    """The model of each row, in the order of tables."""
    finished = [row for row in of_role(campaign.evaluations, TEST) if row.arm.step is None]
    rows = {(row.arm, row.downstream, row.seed): row for row in finished}.values()
    methods = [PRE, *campaign.record.methods]
    return [
        EvaluatedModel(
            replace(row.cell, evaluated_on=""), predictions.mix_of(row.path), row.headline
        )
        for row in sorted(rows, key=lambda row: methods.index(row.method))
    ]
