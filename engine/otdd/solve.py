"""How far the sets are apart, before anything is trained: OTDD from stored features.

Optimal transport between two labelled sets, where moving a sample costs the squared distance of the
features plus the squared distance of the classes (Alvarez-Melis & Fusi 2020). All features are of
the pre-trained model and are computed once per set, self terms are solved once per set, and every
number is certified: a problem that did not converge is missing from the matrix.
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
from engine.machine import ranks
from engine.measures.distances import Matrix
from engine.otdd.problems import Certified, Cloud, DistanceOptions, Labelled, Pair, Problems
from engine.otdd.side_by_side import side_by_side, workers
from engine.run import Run
from engine.store.artifacts import Store
from loaders.resident import free_memory

R = TypeVar("R")

log = logging.getLogger(__name__)

MATRIX = "matrix.json"
# Part of the key: change it when the drawing of samples or the content of a matrix changes.
DRAWS = "by name, gaps summed"


def distances(
    run: Run,
    names: Sequence[str],
    options: DistanceOptions | None = None,
    store: Store | None = None,
) -> Matrix:
    """Distances between sets of a recipe, by features of its pre-trained model.

    store: where they are found or made; by default the run's. Raises ValueError as `check_names`
    and `matrix`, DamagedFile for a stored file that was altered.
    """
    options, store = options or DistanceOptions(), store or run.store
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
            features_ND = features.stored(run, run.base, labelled).to(ranks.present(run.device))
            sets[name] = Labelled(features_ND, labelled.labels)
            run.sets.release(name)
        solved = matrix(sets, len(run.sets.classes), options)
        (folder / MATRIX).write_text(json.dumps(solved.plain()), "utf-8")

    artifact = store.make("distances", label, key, write)
    plain = json.loads(artifact.checked(MATRIX).read_text("utf-8"))
    return Matrix.of(plain | {"samples": options.samples})


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for fewer than two sets, and for a set named twice."""
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"distances require at least two distinct datasets, not {list(names)}")


def matrix(sets: Mapping[str, Labelled], classes: int, options: DistanceOptions) -> Matrix:
    """Distances between all pairs of labelled sets, whose labels lie in [0, classes).

    k sets take k (k - 1) / 2 problems and, if debiased, k more, several of them at a time. Raises
    ValueError for fewer than two sets, naming the set for features or labels that cannot be used,
    and naming the pair for a problem that cannot be solved.
    """
    check_names(list(sets))
    clouds = {name: Cloud.of(name, labelled, classes, options) for name, labelled in sets.items()}
    solved, eps = _solved(Problems(clouds, options))
    certified = np.zeros((3, len(sets), len(sets)))
    for (i, a), (j, b) in combinations(enumerate(sets), 2):
        certified[:, i, j] = certified[:, j, i] = value, gap, _ = solved[a, b]
        if math.isnan(value):
            log.warning(
                "%s to %s did not converge (gap %.1e): no distance; take a larger eps, tolerance "
                "or bracket, or fewer samples",
                *(a, b, gap),
            )
    values, gaps, errors = certified
    return Matrix(tuple(sets), values, gaps, errors, eps, options.samples)


def _solved(problems: Problems) -> tuple[dict[Pair, Certified], float]:
    """(value, gap, marginal error) of every pair, and their eps, 0 if unregularised.

    It is the same eps for all pairs, so that self terms are shared.
    """
    options, pairs = problems.options, list(combinations(problems.clouds, 2))
    # At first: what is free at a moment depends on the pairs that are being solved.
    each = partial(_each, problems, int(0.8 * free_memory(problems.device)))
    if options.exact or options.bracket:
        return each(problems.exact if options.exact else problems.bracketed, pairs), 0.0
    eps = options.eps
    if options.relative:
        eps *= fmean(each(lambda a, b: problems.cost(a, b).mean, pairs).values())
    if not options.debias:
        return each(lambda a, b: problems.biased(a, b, eps), pairs), eps
    selves = [(name, name) for name in problems.clouds]
    solved = each(lambda a, _: problems.self_term(a, eps), selves)
    terms = {name: term for (name, _), term in solved.items()}
    return each(lambda a, b: problems.debiased(a, b, terms), pairs), eps


def _each(
    problems: Problems, memory: int, solve: Callable[[str, str], R], pairs: Sequence[Pair]
) -> dict[Pair, R]:
    """The results of `solve` for each pair, several in parallel within a memory limit."""
    at_once = workers(len(pairs), problems.bytes_each(), memory, problems.device)
    problems.memory = memory // at_once

    def solve_pair(pair: Pair) -> R:
        try:
            return solve(*pair)
        except ValueError as error:
            raise ValueError(f"{' to '.join(pair)}: {error}") from error

    return side_by_side(solve_pair, pairs, at_once, problems.device)
