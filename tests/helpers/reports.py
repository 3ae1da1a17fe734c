"""Finished campaigns made up for tests of the report: a store, a plan's folder, and a record."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engine.campaigns import record
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.record import FinishedCampaign, MethodRow
from engine.data import thumbnails
from engine.measures.rows import PRE
from engine.otdd.distance_matrix import Matrix
from helpers import made_results, stores
from loaders.files.durable import file_hash

SETS = ("flat", "mono", "sketch")
UPSTREAM = "up"
TITLES = {"fine_tune": "FT", "ewc": "EWC & co", "wise_ft": "WiSE-FT"}
ARMS = (("fine_tune", None), ("ewc", None), *(("wise_ft", alpha) for alpha in (0.0, 0.5, 1.0)))
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]
STRENGTH = {PRE: 0.4, "fine_tune": 0.5, "ewc": 0.6, "wise_ft": 0.7}


def finished(
    runs: Path,
    name: str = "drawn",
    *,
    model: str = "lite0",
    sets: Sequence[str] = SETS,
    arms: Sequence[tuple[str, float | None]] = ARMS,
    seed: int = 0,
    images: int = 40,
    **changes: Any,
) -> FinishedCampaign:
    """A finished campaign below `runs`; `changes` replace values of its record."""
    store, place = runs / "store", runs / name / "plans" / "plan"
    folder = store / "predictions" / f"{name}-{model}-{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    cells = [(PRE, None, "", on) for on in (*sets, UPSTREAM)]
    cells += [(*arm, down, on) for arm in arms for down in sets for on in (*sets, UPSTREAM)]
    evaluations = []
    for number, (method, alpha, downstream, on) in enumerate(cells):
        path = folder / f"{number}.parquet"
        hits = rng.random(images) < STRENGTH[method] + 0.2 * (downstream == on)
        pq.write_table(stores.table(hits), path)
        row = stores.cell(path.relative_to(store), method, downstream, on, alpha)
        headline = alpha in (None, 0.5)
        evaluations.append(dataclasses.replace(row, model=model, headline=headline))
    places = (*sets, UPSTREAM)
    apart = np.abs(np.subtract.outer(np.arange(len(places)), np.arange(len(places)))).astype(float)
    errors = np.full_like(apart, 1e-5)
    settings = {"method.variant": "original", "optimizer.name": "adamw", "optimizer.lr": 1e-3}
    settings |= {"optimizer.betas": [0.9, 0.999]}
    values = {
        "name": name,
        "sets": list(sets),
        "downstreams": list(sets),
        "methods": dict(TITLES),
        "settings": {"Command": f"rib campaign {name}", "Seed": 0},
        "rows": [MethodRow(method, settings) for method in TITLES],
        "credits": [{"set": "flat", "licence": "MIT", "url": "https://example.org/a?b=1&c=2"}],
        "contact_sheet": pictures([UPSTREAM], 1)[UPSTREAM]["0"],
        "holdout": True,
        "distances": Matrix(places, apart, errors, errors, 0.5).plain(),
        "files": {str(row.path): file_hash(store / row.path) for row in evaluations},
        "classes": CLASSES,
    }
    return record.write_record(
        PlanFolder(place), made_results.record(evaluations, **values | changes)
    )


def changed(of: Any, **values: Any) -> Any:
    """A finished campaign, or results, with other values of the record."""
    return dataclasses.replace(of, record=dataclasses.replace(of.record, **values))


def pictures(sets: Sequence[str] = SETS, images: int = 40) -> dict[str, dict[str, str]]:
    """Coloured thumbnails, as a record holds them."""
    return {
        name: {
            str(k): base64.b64encode(
                thumbnails.webp(np.full((80, 80, 3), (6 * k, 80 * number, 9), np.uint8))
            ).decode()
            for k in range(images)
        }
        for number, name in enumerate(sets)
    }
