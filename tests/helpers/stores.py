"""Prediction stores made up for tests: a file an evaluation, with chosen hits."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from engine.measures import evaluated, metrics, predictions, scores
from engine.measures.evaluated import Answers
from engine.measures.paired import SourceScores
from engine.measures.rows import PLAIN, PRE, Evaluation, Setting
from engine.recipe import yaml_text

OTHERS = [name for name in scores.METRICS if name != "accuracy"]
SETS = ("a", "b", "c")
Hits = Callable[[str, str, str], np.ndarray]  # method, downstream, evaluated on -> bool [N]


def table(hits: np.ndarray, **columns) -> pa.Table:
    """Predictions with these hits, two images a source; `columns` replace or add some."""
    n = len(hits)
    label = np.arange(n) % 5
    defaults = {
        "index": np.arange(n),
        "source": [f"concept-{i // 2}" for i in range(n)],
        "label": label,
        "top1": np.where(hits, label, label + 1),
    } | {name: np.full(n, 0.5, np.float32) for name in predictions.PROBABILITIES}
    return pa.table(defaults | columns)


def setting(text: str) -> Setting:
    """The setting that tables show as this text: `optimizer.lr=0.1,train.epochs=1`."""
    words = [word.partition("=") for word in text.split(",") if word]
    return Setting({key: yaml_text.parse_yaml(value, text) for key, _, value in words})


def cell(
    path: Path, method: str, downstream: str, on: str, alpha: float | None = None, seed: int = 0
) -> Evaluation:
    variant = "" if method == PRE else "original"
    return Evaluation("lite0", method, variant, alpha, PLAIN, downstream, on, path, seed)


def right(row: Evaluation) -> np.ndarray:
    """Which of the stored predictions are right, bool [N]."""
    table = pq.read_table(row.path)
    return table["top1"].to_numpy() == table["label"].to_numpy()


def answered(row: Evaluation, right: np.ndarray, folder: Path) -> Evaluation:
    """The same images with other answers, of which these are right."""
    table, path = pq.read_table(row.path), folder / row.path.name
    label = table["label"].to_numpy()
    pq.write_table(table.set_column(3, "top1", [np.where(right, label, label + 1)]), path)
    return replace(row, path=path)


def grid(
    folder: Path,
    hits: Hits,
    methods: Sequence[str] = ("fine_tune",),
    sets: Sequence[str] = SETS,
    seed: int = 0,
    **columns,
) -> list[Evaluation]:
    """Files of a whole grid, the upstream set `up` included; `hits` gives the correct images."""
    cells = [(PRE, "", on) for on in (*sets, "up")]
    cells += list(itertools.product(methods, sets, (*sets, "up")))
    out = []
    folder.mkdir(exist_ok=True)
    for number, (method, downstream, on) in enumerate(cells):
        path = folder / f"{number}.parquet"
        pq.write_table(table(hits(method, downstream, on), **columns), path)
        out.append(cell(path, method, downstream, on, seed=0 if method == PRE else seed))
    return out


def several_seeds(
    folder: Path, hits: Callable[[int], Hits], seeds: Sequence[int], **options
) -> list[Evaluation]:
    """The same with several training seeds; the first gives the pretrained model."""
    out: list[Evaluation] = []
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        cells = grid(folder / str(seed), hits(seed), seed=seed, **options)
        out += [evaluation for evaluation in cells if evaluation.method != PRE or not out]
    return out


def random_hits(n: int = 60, seed: int = 0) -> Hits:
    rng = np.random.default_rng(seed)
    return lambda method, downstream, on: rng.random(n) < (0.4 if method == PRE else 0.5)


def gather(
    evaluations: Sequence[Evaluation],
    sets: Sequence[str] = SETS,
    downstreams: Sequence[str] = (),
    **options,
) -> metrics.Grid:
    """The grid of evaluations, with the upstream set `up`."""
    return metrics.gather(evaluations, sets, "up", downstreams, **options)


def mri(evaluations: Sequence[Evaluation] | metrics.Grid, **options) -> pandas.DataFrame:
    """A row an arm: mRI_pts, mRI_low and mRI_high."""
    is_grid = isinstance(evaluations, metrics.Grid)
    of_grid = evaluations if is_grid else gather(evaluations, **options)
    return of_grid.named(of_grid.mri.table("mRI_pts"))


def synthetic(
    cells: Sequence[Any],
    sets: Sequence[str],
    upstream: str = "up",
    downstreams: Sequence[str] = (),
    spread: float = 1.0,
) -> metrics.Grid:
    """A grid of chosen accuracies: (model, method, variant, alpha, setting, downstream,
    evaluated on, accuracy), or with `headline` after these. Draws are as far apart as `spread`."""
    evaluations, numbers = [], []
    for cell in cells:
        headline = cell[8] if len(cell) > 8 else True
        row: Any = *cell[:4], setting(cell[4]), *cell[5:7], Path(), 0, headline
        evaluations.append(Evaluation(*row))
        numbers.append(
            {"images": 100, "sources": 100, "accuracy": cell[7], **dict.fromkeys(OTHERS, np.nan)}
        )
    accuracy = np.array([row["accuracy"] for row in numbers])
    noise = np.random.default_rng(0).standard_normal((200, len(cells)))
    names = scores.names(scores.PER_IMAGE, scores.BEFORE_AFTER)
    draws = dict.fromkeys(names, (accuracy + spread * noise).astype(np.float32))
    right = accuracy + 10 * spread * np.random.default_rng(1).standard_normal((100, len(cells)))
    answers = {}
    for name, places in evaluated.by_set(evaluations).items():
        of_set = SourceScores(np.arange(100), np.ones(100), right[:, places])
        answers[name] = Answers(of_set, places)
    return metrics.grid_of(
        evaluations, numbers, draws, sets, upstream, downstreams or sets, answers
    )
