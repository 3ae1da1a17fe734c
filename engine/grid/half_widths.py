"""How far the numbers of a sample may be from those of all images, and whether that is near enough.

These intervals are about the images at hand and have no width once all are seen. The bootstrap
intervals of the tables are about source images like these; they resample the sample's images with
their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.evaluation import budget
from engine.evaluation.budget import Drawn
from engine.measures import metrics, predictions, rows
from engine.measures.rows import PRE, Arm, Evaluation, OfArm


@dataclass(frozen=True)
class HalfWidth(OfArm):
    """95% interval, in points to either side, of a RI, or of mRI where `downstream` is empty."""

    downstream: str
    half_width: float


def half_widths(
    evaluations: Sequence[Evaluation],
    samples: Mapping[str, Drawn],
    sets: Sequence[str],
    downstreams: Sequence[str] = (),
) -> list[HalfWidth]:
    """The intervals of every RI on `sets`, and of mRI of arms that have all columns.
    downstreams: as in `metrics.summarise`.

    Each interval alone holds with 95%; training seeds are taken as given.
    """
    downstreams = downstreams or sets
    variances: dict[Arm, dict[str, float]] = {}  # of each RI, and of mRI under ""
    for name, weights in metrics.weights_in_mri(sets, downstreams).items():
        for arm, columns in _hits(evaluations, samples[name], name, downstreams).items():
            # The variance of a mean of hits, since `seen` allows for hits that no image showed.
            total = sum(weights[i] for i in columns)
            mean = np.sum([weights[i] / total * hits for i, hits in columns.items()], axis=0)
            values = np.stack([*columns.values(), mean], axis=1)
            *each, of_mean = budget.seen(samples[name].frame, values).variance
            of_arm = variances.setdefault(arm, dict.fromkeys([*downstreams, ""], 0.0))
            for downstream, variance in zip(columns, each, strict=True):
                in_ri = len(downstreams) * weights[downstream]
                of_arm[downstream] += float(variance) * in_ri**2
            of_arm[""] += float(of_mean) * total**2
    z = 100 * budget.quantile(1)
    intervals = []
    for arm, of_arm in variances.items():
        trained = {row.downstream for row in evaluations if row.arm == arm}
        names = [name for name in downstreams if name in trained]
        names += [""] if len(names) == len(downstreams) else []
        intervals += [HalfWidth(*arm, name, z * of_arm[name] ** 0.5) for name in names]
    return intervals


def note(intervals: Sequence[HalfWidth], samples: Mapping[str, Drawn]) -> str:
    """What a table says of its sample."""
    seen, total = _seen(samples)
    ri, mri = (
        max((row.half_width for row in intervals if bool(row.downstream) == of_sets), default=0.0)
        for of_sets in (True, False)
    )
    return (
        f"a sample, {seen} of {total} images ({seen / total:.1%}): of what all would say, each RI "
        f"is within {ri:.2f} points or less and mRI within {mri:.2f} (95%); other intervals "
        "resample the images drawn, with their weights"
    )


def write(folder: Path, intervals: Sequence[HalfWidth]) -> None:
    """`half_widths.csv` in the folder of a report."""
    rows.write(folder / "half_widths.csv", HalfWidth, intervals)


def _seen(samples: Mapping[str, Drawn]) -> tuple[int, int]:
    """Images of the samples, and of their sets."""
    drawn = samples.values()
    return sum(each.images for each in drawn), sum(len(each.index) for each in drawn)


def _hits(
    evaluations: Sequence[Evaluation], sample: Drawn, name: str, downstreams: Sequence[str]
) -> dict[Arm, dict[str, np.ndarray]]:
    """Share of seeds [images, in the order of drawing] that were right, by arm and column."""
    drawn = sample.index[sample.frame.order[: sample.images]]
    by_seed: dict[Arm, dict[str, list[np.ndarray]]] = {}
    for row in evaluations:
        if row.evaluated_on != name or row.method == PRE or row.on_downstream:
            continue
        if row.downstream not in downstreams:
            continue
        table = predictions.read(row.path)
        right = table["top1"].to_numpy() == table["label"].to_numpy()
        right = right[np.searchsorted(table["index"].to_numpy(), drawn)]
        by_seed.setdefault(row.arm, {}).setdefault(row.downstream, []).append(right)
    return {
        arm: {downstream: np.mean(seeds, axis=0) for downstream, seeds in columns.items()}
        for arm, columns in by_seed.items()
    }
