"""How often a sample's intervals hold, and how many images they need.

    python -m bench.coverage [RUNS/store] [--json FILE]

draws samples of known populations again and again: of a set as large as ImageNet-C, made up, and of
the predictions that a campaign stored. It times nothing, so it is no case of `python -m bench`;
bench/results/coverage.json holds its results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import report
from engine.evaluation import budget
from engine.evaluation.budget import Frame
from engine.measures import predictions

REPEATS = 1000
MODELS = 12  # of a store; each has its own RI
SETS_EVALUATED_LITTLE = 50  # a store's set with fewer models is of no use here


@dataclass(frozen=True)
class Population:
    """A set whose answers are all known: `right` (int64 [H, M]) of each stratum, a model each."""

    frame: Frame
    right: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Accuracy [M] over all images."""
        return (self.frame.share[:, None] * self.right / self.frame.size[:, None]).sum(axis=0)

    def variance(self, images: int) -> np.ndarray:
        """What the variance [M] of a sample really is (Cochran 1977, theorem 5.3)."""
        size, drawn = self.frame.size[:, None], self.frame.drawn(images)[:, None]
        p = self.right / size
        spread = p * (1 - p) * size / np.maximum(size - 1, 1)
        each = self.frame.share[:, None] ** 2 * (1 - drawn / size) * spread / drawn
        return each.sum(axis=0)


@dataclass(frozen=True)
class Trial:
    """Share of repeats whose interval held the truth, and the images seen on average."""

    covered: float
    images: float


def population(
    before: np.ndarray,
    p_true: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    *,
    control: bool = True,
    seed: int = 0,
) -> Population:
    """A set from answers before [N] and after [N, M]; `control`: strata know those before."""
    variate = (before, p_true) if control else (np.zeros_like(before), np.full(len(before), 0.5))
    frame = budget.stratify(*variate, label, group, np.ones(len(before)), [seed])
    counts = [np.bincount(frame.stratum, column) for column in after.T]
    return Population(frame, np.stack(counts, axis=1).astype(np.int64))


def corrupted(
    groups: int = 75, sources: int = 50_000, classes: int = 1000, *, control: bool = True
) -> tuple[Population, np.ndarray, np.ndarray]:
    """A set of `groups` corruptions and severities of the same sources, and its answers before and
    after: margins of a source, a class, a group and chance, which fine-tuning shifts."""
    rng = np.random.default_rng(0)
    label = np.arange(sources) * classes // sources
    source = 2 * rng.normal(size=sources) + rng.normal(size=classes)[label]
    shift = 0.8 * rng.normal(size=groups)
    margins = [
        source + 1.2 + shift[g] - 0.9 * (g % 5) + 1.5 * rng.normal(size=sources)
        for g in range(groups)
    ]
    margin = np.concatenate(margins)
    group = np.repeat(np.arange(groups), sources)
    after = 0.9 * margin + 0.3 * shift[group] - 0.2 + 1.3 * rng.normal(size=len(margin)) > 0
    p_true = 1 / (1 + np.exp(-margin))
    before = margin > 0
    corruptions = population(
        before, p_true, after[:, None], np.tile(label, groups), group, control=control
    )
    return corruptions, before, after


def stored(store: Path, models: int = MODELS, *, control: bool = True) -> list[Population]:
    """The sets of a campaign's store, with `models` of those that were evaluated on all of them."""
    paths_of_set: dict[tuple[str, str], dict[str, Path]] = {}
    for marker in sorted((store / "predictions").glob("*/done.json")):
        key = json.loads(marker.read_text())["key"]
        if "part" not in key:
            mix = json.dumps(key["mix"])
            paths_of_set.setdefault((key["pack"], str(key["split"])), {})[mix] = marker.parent
    sets = [paths for paths in paths_of_set.values() if len(paths) >= SETS_EVALUATED_LITTLE]
    if not sets:
        raise ValueError(f"{store} holds no set that {SETS_EVALUATED_LITTLE} models were shown")
    common = sorted(set.intersection(*map(set, sets)))
    base = next((mix for mix in common if mix.startswith('{"linear_probe-upstream')), None)
    if base is None:
        raise ValueError(f"{store} holds no pre-trained model whose head was fitted upstream")
    mixes = [mix for mix in common if mix != base]
    chosen = [mixes[i] for i in np.linspace(0, len(mixes) - 1, models).astype(int)]
    populations = []
    for number, paths in enumerate(sets):
        tables = [predictions.read(paths[mix]) for mix in (base, *chosen)]
        label = tables[0]["label"].to_numpy()
        before, *after = [table["top1"].to_numpy() == label for table in tables]
        p_true = tables[0]["p_true"].to_numpy().astype(float)
        group = np.zeros(len(label), np.int64)
        populations.append(
            population(
                before, p_true, np.stack(after, 1), label, group, control=control, seed=number
            )
        )
    return populations


def stop(
    populations: Sequence[Population], half_width: float, repeats: int = REPEATS, model: int = 0
) -> Trial:
    """Sequential samples of one model's mean change over the sets, to `half_width` (a share)."""
    draws = Draws(populations, repeats, model)
    truth = np.mean([population.mean[model] for population in populations])
    z, total = (
        budget.quantile(budget.LOOKS),
        sum(len(population.frame.order) for population in populations),
    )
    covered, images = np.zeros(repeats, bool), np.zeros(repeats)
    share = np.full(repeats, budget.next_look(1, 0, 0, half_width, 1))
    running = np.ones(repeats, bool)
    for number in range(2, budget.LOOKS + 2):
        for now in np.unique(share[running]):
            active = np.flatnonzero(running & (share == now))
            value, variance, count = draws.look(active, float(now))
            width = z * np.sqrt(variance)
            ends = width <= half_width
            covered[active] = np.abs(value - truth) <= width + 1e-9
            images[active] = count
            running[active] = ~ends
            for k, wide in zip(active[~ends], width[~ends], strict=True):
                share[k] = budget.next_look(number, count / total, wide, half_width, 1)
    assert not running.any()
    return Trial(float(covered.mean()), float(images.mean()))


def once(
    populations: Sequence[Population], share: float, repeats: int = REPEATS, model: int = 0
) -> Trial:
    """Samples of one size, `share` of the images."""
    truth = np.mean([population.mean[model] for population in populations])
    draws = Draws(populations, repeats, model)
    value, variance, count = draws.look(np.arange(repeats), share)
    covered = np.abs(value - truth) <= budget.quantile() * np.sqrt(variance) + 1e-9
    return Trial(float(covered.mean()), float(count))


def needed(populations: Sequence[Population], half_width: float, model: int = 0) -> int:
    """Images that an interval of `half_width` (a share) takes, if variances were known."""
    frames = [population.frame for population in populations]
    low, high = budget.least_share(frames), 1.0
    for _ in range(24):
        share = (low + high) / 2
        counts = budget.allocate(frames, share)
        variance = sum(
            population.variance(n)[model] for population, n in zip(populations, counts, strict=True)
        )
        wide = budget.quantile() * np.sqrt(variance) / len(populations) > half_width
        low, high = (share, high) if wide else (low, share)
    return sum(budget.allocate(frames, high))


class Draws:
    """Repeated nested samples of one model's answers, drawn without replacement from what is left
    of each stratum."""

    def __init__(self, populations: Sequence[Population], repeats: int, model: int) -> None:
        self.populations, self.model = populations, model
        self._rng = np.random.default_rng(model)
        shape = [(repeats, len(population.frame.size)) for population in populations]
        self._drawn = [np.zeros(size, np.int64) for size in shape]
        self._right = [np.zeros(size, np.int64) for size in shape]

    def look(self, index: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean over the sets and its variance [len(index)], and the number of images.

        index: the repeats that look; share: at least as large as at the look before.
        """
        frames = [population.frame for population in self.populations]
        counts = budget.allocate(frames, max(share, budget.least_share(frames)))
        value, variance = np.zeros(len(index)), np.zeros(len(index))
        sets = zip(self.populations, counts, self._drawn, self._right, strict=True)
        for population, images, drawn, right in sets:
            now = population.frame.drawn(images)
            hits = population.right[:, self.model] - right[index]
            misses = population.frame.size - drawn[index] - hits
            right[index] += self._rng.hypergeometric(hits, misses, now - drawn[index])
            drawn[index] = now
            estimate = budget.estimate(population.frame, now, right[index].T, right[index].T)
            value += estimate.mean / len(self.populations)
            variance += estimate.variance / len(self.populations) ** 2
        return value, variance, sum(counts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__)
    parser.add_argument("stores", nargs="*", type=Path, metavar="RUNS/store")
    parser.add_argument("--json", type=Path, help="all results, as a file")
    options = parser.parse_args(arguments)
    print(f"{REPEATS} repeats; 95% intervals of the mean change over the sets, in points")
    rows = []
    for control in (True, False):
        sets = [corrupted(control=control)[0]]
        rows += _show("75 x 50,000 made up", control, sets, models=1, widths=(0.5, 0.1))
    for store in options.stores:
        for control in (True, False):
            sets = stored(store, control=control)
            title, widths = f"{len(sets)} sets of a campaign", (5.0, 2.0, 1.0, 0.5, 0.1)
            rows += _show(title, control, sets, models=MODELS, widths=widths)
    if options.json:
        about = report.machine(torch.device("cpu"))
        report.write(options.json, {"machine": about, "repeats": REPEATS, "rows": rows})
    return 0


def _show(
    title: str, control: bool, sets: Sequence[Population], models: int, widths: Sequence[float]
) -> list[dict[str, Any]]:
    total = sum(len(population.frame.order) for population in sets)
    print(f"\n{title}: {total} images, {'with' if control else 'without'} the control variate")
    about = {"population": title, "of": total, "control": control, "models": models}
    rows = []
    for share in (0.05, 0.25):
        trials = [once(sets, share, model=m) for m in range(models)]
        rows.append(about | {"budget": share} | _line(f"budget {share:g}", trials))
    for width in widths:
        trials = [stop(sets, width / 100, model=m) for m in range(models)]
        images_known = float(np.mean([needed(sets, width / 100, m) for m in range(models)]))
        more = f"; {images_known:.0f} with known variances and one look"
        row = {"half_width": width, "images_with_known_variances": images_known}
        rows.append(about | row | _line(f"to +-{width:g}", trials, more))
    return rows


def _line(what: str, trials: Sequence[Trial], more: str = "") -> dict[str, float]:
    covered = [trial.covered for trial in trials]
    mean, worst, images = (
        np.mean(covered),
        min(covered),
        np.mean([trial.images for trial in trials]),
    )
    print(
        f"  {what:<12} covered {mean:.1%} (worst model {worst:.1%}), {images:.0f} images{more}",
        flush=True,
    )
    return {"covered": float(mean), "covered_worst_model": worst, "images": float(images)}


if __name__ == "__main__":
    sys.exit(main())
