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
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch

from engine.evaluation import features
from engine.machine.devices import cpu_threads
from engine.machine.terminal import progress_bar
from engine.otdd.distance_matrix import Matrix
from engine.otdd.problems import Certified, Cloud, DistanceOptions, LabelledFeatures, Pair, Problems
from engine.run import Run
from loaders.batches import free_memory

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

log = logging.getLogger(__name__)

MATRIX = "matrix.json"
# Part of the key: change it if the drawing of samples or the content of a matrix changes.
DRAWS = "by name, gaps summed"
_STREAMS = 4  # problems at once on a GPU


def distances(run: Run, names: Sequence[str], options: DistanceOptions | None = None) -> Matrix:
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
            sets[name] = LabelledFeatures(features_ND, labelled.labels)
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


def matrix(sets: Mapping[str, LabelledFeatures], classes: int, options: DistanceOptions) -> Matrix:
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
    memory = int(0.8 * free_memory(problems.device))

    def each(solve: Callable[[str, str], R], pairs: Sequence[Pair]) -> dict[Pair, R]:
        at_once = workers(len(pairs), problems.bytes_each(), memory, problems.device)
        problems.memory = memory // at_once

        def solve_pair(pair: Pair) -> R:
            try:
                return solve(*pair)
            except ValueError as error:
                raise ValueError(f"{' to '.join(pair)}: {error}") from error

        return side_by_side(solve_pair, pairs, at_once, problems.device)

    eps = options.eps * fmean(each(lambda a, b: problems.cost(a, b).mean, pairs).values())
    if not options.debias:
        return each(lambda a, b: problems.biased(a, b, eps), pairs), eps
    selves = [(name, name) for name in problems.clouds]
    solved = each(lambda a, _: problems.self_term(a, eps), selves)
    terms = {name: term for (name, _), term in solved.items()}
    return each(lambda a, b: problems.debiased(a, b, terms), pairs), eps


def workers(problems: int, bytes_each: int, allowed: int, device: torch.device) -> int:
    """Returns how many problems may run at once, at least 1.

    bytes_each: memory of the largest problem. allowed: bytes for all of them together.
    """
    most = torch.get_num_threads() if device.type == "cpu" else _STREAMS
    return max(1, min(problems, most, allowed // max(1, bytes_each)))


def side_by_side(
    work: Callable[[T], R], items: Sequence[T], at_once: int, device: torch.device
) -> dict[T, R]:
    """Returns work(item) for each item, computed in parallel threads that share torch's cores.

    Threads are enough: the work (BLAS, LAPACK, compiled loops, network simplex) releases the GIL.
    They copy no data and share compiled loops. On a GPU each thread has its own stream, so one
    problem's launches fill the waits of another. Results do not depend on the parallelism. After an
    error no further item starts, and the error is raised when the running ones have finished.
    """
    on_gpu = device.type == "cuda"

    def set_stream() -> None:
        if on_gpu:
            torch.cuda.set_stream(torch.cuda.Stream(device))

    def finished(item: T) -> R:
        result = work(item)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return result

    if on_gpu:
        torch.cuda.synchronize(device)  # new streams do not wait for the stream of their inputs
    share = cpu_threads(max(1, torch.get_num_threads() // at_once))
    with share, ThreadPoolExecutor(at_once, "problems", set_stream) as pool:
        futures = {item: pool.submit(finished, item) for item in items}
        done = as_completed(futures.values())
        try:
            for future in progress_bar(done, total=len(items), desc="distances", unit="pair"):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return {item: future.result() for item, future in futures.items()}
