"""Distances between datasets before any training: OTDD from stored features.

OTDD is optimal transport between two labelled datasets. Moving a sample costs the squared distance
of the features plus the squared distance of the classes (Alvarez-Melis & Fusi 2020). The pretrained
model computes the features once per dataset, self terms are solved once per dataset, and all values
are certified: a problem that did not converge is missing from the matrix.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np

from engine.evaluation import features
from engine.otdd.distance_matrix import Matrix
from engine.otdd.problems import Certified, Cloud, DistanceOptions, Labelled, Pair, Problems
from engine.otdd.side_by_side import side_by_side, workers
from engine.run import Run
from loaders.batches import free_memory

R = TypeVar("R")

log = logging.getLogger(__name__)

MATRIX = "matrix.json"
# Part of the key: change it if the drawing of samples or the content of a matrix changes.
DRAWS = "by name, gaps summed"


def distances(
    run: Run,
    names: Sequence[str],
    options: DistanceOptions | None = None,
) -> Matrix:
    """Returns distances between datasets of a recipe, by features of its pretrained model.

    Raises ValueError as `check_names` and `matrix` do, DamagedFile if a stored file was altered.
    """
    options = options or DistanceOptions()
    check_names(names)
    key = {
        "features": [features.key_of(run, run.base, run.sets[name]) for name in names],
        "sets": list(names),
        "options": dataclasses.asdict(options),
        "draws": DRAWS,
    }
    label = run.recipe.model.name

    def write(folder: Path) -> None:
        sets = {}
        for name in names:
            labelled = run.sets[name]
            features_ND = features.stored(run, run.base, labelled).to(run.device)
            sets[name] = Labelled(features_ND, labelled.labels)
            run.sets.release(name)
        solved = matrix(sets, len(run.sets.classes), options)
        (folder / MATRIX).write_text(json.dumps(solved.plain()), "utf-8")

    artifact = run.store.make("distances", label, key, write)
    plain = json.loads(artifact.checked(MATRIX).read_text("utf-8"))
    return Matrix.of(plain | {"samples": options.samples})


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for fewer than two datasets, and for a dataset named twice."""
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"distances require at least two distinct datasets, not {list(names)}")


def matrix(sets: Mapping[str, Labelled], classes: int, options: DistanceOptions) -> Matrix:
    """Returns distances between all pairs of labelled datasets with labels in [0, classes).

    k datasets take k (k - 1) / 2 problems and, if debiased, k more, several at a time.

    Raises ValueError for fewer than two datasets, naming the dataset for features or labels that
    cannot be used, and naming the pair for a problem that cannot be solved.
    """
    check_names(list(sets))
    clouds = {name: Cloud.of(name, labelled, classes, options) for name, labelled in sets.items()}
    solved, eps = _solved(Problems(clouds, options))
    certified = np.zeros((3, len(sets), len(sets)))
    for (i, a), (j, b) in combinations(enumerate(sets), 2):
        certified[:, i, j] = certified[:, j, i] = value, gap, _ = solved[a, b]
        if math.isnan(value):
            log.warning(
                "%s to %s did not converge (gap %.1e), so it has no distance; use a larger eps or "
                "fewer samples",
                *(a, b, gap),
            )
    values, gaps, errors = certified
    return Matrix(tuple(sets), values, gaps, errors, eps, options.samples)


def _solved(problems: Problems) -> tuple[dict[Pair, Certified], float]:
    """Returns (value, gap, marginal error) of each pair, and eps in units of the cost.

    All pairs have the same eps, so that they share self terms.
    """
    options, pairs = problems.options, list(combinations(problems.clouds, 2))
    # Measured before solving, since running problems change the free memory.
    each = partial(_each, problems, int(0.8 * free_memory(problems.device)))
    eps = options.eps * fmean(each(lambda a, b: problems.cost(a, b).mean, pairs).values())
    if not options.debias:
        return each(lambda a, b: problems.biased(a, b, eps), pairs), eps
    selves = [(name, name) for name in problems.clouds]
    solved = each(lambda a, _: problems.self_term(a, eps), selves)
    terms = {name: term for (name, _), term in solved.items()}
    return each(lambda a, b: problems.debiased(a, b, terms), pairs), eps


def _each(
    problems: Problems, memory: int, solve: Callable[[str, str], R], pairs: Sequence[Pair]
) -> dict[Pair, R]:
    """Returns the results of `solve` for each pair, several in parallel within a memory limit."""
    at_once = workers(len(pairs), problems.bytes_each(), memory, problems.device)
    problems.memory = memory // at_once

    def solve_pair(pair: Pair) -> R:
        try:
            return solve(*pair)
        except ValueError as error:
            raise ValueError(f"{' to '.join(pair)}: {error}") from error

    return side_by_side(solve_pair, pairs, at_once, problems.device)
