"""Read evaluations: measures on each dataset, and their draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.measures import bootstrap, scores
from engine.measures.paired import SourceScores
from engine.measures.predictions import ImagePredictions, SetPredictions
from engine.measures.rows import PRE, Arm, Evaluation, ModelOnSet, pretrained
from engine.measures.temperature_scaling import Temperature

TOGETHER = 64  # evaluations whose draws are made at a time


class Answers(NamedTuple):
    """Accuracy in percent of the models of some evaluations on a dataset, by source. places: of the
    evaluations in their list, or of the cells of a grid."""

    scores: SourceScores
    places: Sequence[int] | np.ndarray


def by_set(evaluations: Sequence[Evaluation]) -> dict[str, list[int]]:
    """The places of each dataset's evaluations."""
    places: dict[str, list[int]] = {}
    for k, row in enumerate(evaluations):
        places.setdefault(row.evaluated_on, []).append(k)
    return places


def measured(
    evaluations: Sequence[Evaluation],
    temperatures: Mapping[tuple[Arm, str, int], Temperature | None],
    draws: int,
) -> tuple[list[dict[str, float]], dict[str, np.ndarray], dict[str, Answers]]:
    """The numbers of each evaluation (images, sources, and measures); by measure their draws,
    float32 [B, evaluations]; and by dataset the answers of models that were not trained on it."""
    names = scores.names(scores.PER_IMAGE, scores.BEFORE_AFTER)
    shape = draws, len(evaluations)
    samples = {name: np.empty(shape, np.float32, order="F") for name in names}
    numbers: list[dict[str, float]] = [{} for _ in evaluations]
    answers = {}
    for dataset, places in by_set(evaluations).items():
        places.sort(key=lambda k: (evaluations[k].on_downstream, evaluations[k].method != PRE))
        rows = [evaluations[k] for k in places]
        of_rows, of_measures, by_source = _of_set(rows, temperatures, draws)
        answers[dataset] = Answers(by_source, places[: by_source.sums.shape[1]])
        for k, row in zip(places, of_rows, strict=True):
            numbers[k] = row
        for number, name in enumerate(names):
            samples[name][:, places] = of_measures[:, :, number]
    return numbers, samples, answers


def _of_set(
    rows: Sequence[Evaluation],
    temperatures: Mapping[tuple[Arm, str, int], Temperature | None],
    draws: int,
) -> tuple[list[dict[str, float]], np.ndarray, SourceScores]:
    """The numbers of a dataset's evaluations; draws, float32 [B, rows, measures]; and the accuracy
    in percent of the rows that were not trained on the dataset, by source.

    rows: pretrained models first. Models trained on the dataset come last and are read separately,
    because they may be evaluated on held-out images only.
    """
    numbers, samples, by_source = [], [], SourceScores((), np.empty(0), np.empty((0, 0)))
    names = scores.names(scores.PER_IMAGE, scores.BEFORE_AFTER)
    scales = np.array([scores.SCALES[scores.METRICS[name].unit] for name in names])
    whole_set = {name: scores.METRICS[name].of for name in scores.names(scores.WHOLE_SET)}
    of_set, on_downstream = SetPredictions(), SetPredictions()
    pre: dict[tuple[str, str], ImagePredictions] = {}  # by model and column
    for bank, is_on in ((of_set, False), (on_downstream, True)):
        of_bank = [row for row in rows if row.on_downstream == is_on]
        counts, hits = np.empty(0), []
        for start in range(0, len(of_bank), TOGETHER):
            sums = []
            for row in of_bank[start : start + TOGETHER]:
                temperature = temperatures.get((row.arm, row.downstream, row.seed))
                after = bank.add(row.path, row.model, temperature and temperature.confidence)
                before = pre.get((row.model, row.downstream))
                # Without an upstream dataset, models may all be trained on a dataset.
                has_others = of_set.first is not None
                if before is None and has_others and bank.images.equals(of_set.images):
                    before = pre.get((row.model, ""))
                cases = scores.of_images(after, before)
                of_sources = np.stack([bank.by_source(case) for case in cases.values()], axis=1)
                means = (scales * of_sources.sum(axis=0) / bank.total.sum()).tolist()
                of_row: dict[str, float] = {"images": len(after.label)}
                of_row["sources"] = float(bank.total.sum() ** 2 / (bank.total**2).sum())
                of_row |= dict(zip(cases, means, strict=True))
                of_row |= {name: metric(after, bank.codes) for name, metric in whole_set.items()}
                numbers.append(of_row)
                sums.append(of_sources.astype(np.float32))
                hits.append(100 * sums[-1][:, names.index("accuracy")])
                if row.method == PRE:
                    pre[row.model, row.downstream] = after
            counts = counts if start else bootstrap.counts(bank.sources, draws)
            drawn = bootstrap.means(counts, bank.total, np.concatenate(sums, axis=1))
            samples.append(scales.astype(np.float32) * drawn.reshape(draws, len(sums), -1))
        if hits and not is_on:
            by_source = SourceScores(bank.sources, bank.total, np.stack(hits, axis=1))
    return numbers, np.concatenate(samples, axis=1), by_source


def again(
    evaluations: Sequence[Evaluation], replicates: Sequence[Evaluation]
) -> dict[ModelOnSet, float]:
    """Accuracy in percent of second trainings. Raises ValueError if an evaluation used other images
    than the first training's."""
    first, accuracy = {row.cell: row.path for row in evaluations}, {}
    for row in replicates:
        images = SetPredictions()
        images.add(first[row.cell], row.model)
        hits = images.by_source(images.add(row.path, row.model).hit)
        accuracy[row.cell] = float(100 * hits.sum() / images.total.sum())
    return accuracy


def check(
    evaluations: Sequence[Evaluation], sets: Sequence[str], downstreams: Sequence[str]
) -> None:
    """Raise ValueError unless every model was evaluated once on every required dataset: all `sets`
    after fine-tuning on each of `downstreams`, with every seed, and each of these before it."""
    if len(set(sets)) < 2:
        raise ValueError(f"RI requires at least two distinct datasets, not {list(sets)}")
    seen = Counter((row.cell, row.seed) for row in evaluations)
    for (cell, seed), count in seen.items():
        if count > 1:
            raise ValueError(f"{cell}, seed {seed}, occurs {count} times")
    trained = dict.fromkeys(cell for cell, _ in seen if cell.method != PRE)
    for arm in dict.fromkeys(cell.arm for cell in trained):
        trained |= dict.fromkeys(ModelOnSet(*arm, i, j) for i in downstreams for j in sets)
    seeds = sorted({seed for cell, seed in seen if cell.method != PRE})
    cells = {cell for cell, _ in seen}
    needed = [(pretrained(cell, cells), 0) for cell in trained]
    needed += [(cell, seed) for cell in trained for seed in seeds]
    if missing := [(cell, seed) for cell, seed in needed if (cell, seed) not in seen]:
        cell, seed = missing[0]
        raise ValueError(
            f"{cell}, seed {seed}, is missing from the grid, the first of {len(missing)}: finish "
            "the campaign, and use the same seeds for all methods"
        )
