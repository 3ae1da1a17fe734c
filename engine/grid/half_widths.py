"""How far the numbers of a sample may be from those of all images, and whether that is near enough.

These intervals are about the images at hand and have no width once all are seen. The bootstrap
intervals of the tables are about source images like these; they resample the sample's images with
their weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine import recipe
from engine.evaluation import budget
from engine.evaluation.budget import Drawn
from engine.grid import campaign
from engine.machine.files import write_atomic
from engine.measures import metrics, predictions, rows
from engine.measures.rows import PRE, Arm, Evaluation, OfArm

if TYPE_CHECKING:
    from engine.recipe.schema import Recipe

FILE = "half_width.json"  # beside a plan: share of the sets' images seen, widest interval of a RI


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
    *,
    sequential: bool,
) -> list[HalfWidth]:
    """The intervals of every RI on `sets`, and of mRI of arms that have all columns.
    downstreams: as in `metrics.summarise`.

    `sequential`: whether sampling stops as soon as they are narrow, which makes them wider. Each
    interval alone holds with 95%; training seeds are taken as given.
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
    z = 100 * budget.quantile(budget.LOOKS if sequential else 1)
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


def write(
    folder: Path, place: Path, intervals: Sequence[HalfWidth], samples: Mapping[str, Drawn]
) -> None:
    """`half_widths.csv` beside the report, and the widest of a RI beside the plan (in `place`)."""
    rows.write(folder / "half_widths.csv", HalfWidth, intervals)
    assert intervals, "a campaign has columns, and each a RI"
    widest = max(row.half_width for row in intervals if row.downstream)
    seen, total = _seen(samples)
    write_atomic(place / FILE, json.dumps([seen / total, widest]).encode())


def sequential_plans(name: str, overrides: Sequence[str], cores: int) -> Iterator[campaign.Plan]:
    """The plans that a campaign has to run, one after the other.

    Without `evaluate.half_width` there is one. With it, each sees more images than the last and
    takes over what that evaluated, until the intervals of RI are no wider than `half_width` or
    `evaluate.budget` is reached. A plan that is known to be too wide is not run again.
    """
    evaluate = recipe.load(name, overrides).evaluate
    if evaluate.half_width is None:
        yield campaign.plan(name, overrides, cores)
        return
    share = width = 0.0
    for number in range(1, budget.LOOKS + 1):
        share = budget.next_look(number, share, width, evaluate.half_width, evaluate.budget)
        plan = campaign.plan(name, [*overrides, f"evaluate.budget={share}"], cores)
        is_last = share == evaluate.budget
        if is_last or not _too_wide(plan, evaluate.half_width):
            yield plan
            if is_last or not _too_wide(plan, evaluate.half_width):
                return
        share, width = _result(plan)


def users_words(plan: campaign.Plan, resolved: Recipe) -> tuple[str, ...]:
    """The user's overrides, without the budget that `sequential_plans` adds."""
    return plan.overrides if resolved.evaluate.half_width is None else plan.overrides[:-1]


def _too_wide(plan: campaign.Plan, half_width: float) -> bool:
    """Whether the plan has a report, and an interval in it is wider."""
    return (plan.path.parent / FILE).is_file() and _result(plan)[1] > half_width


def _result(plan: campaign.Plan) -> tuple[float, float]:
    """Of a plan's report: the share of the images seen, and the widest interval of a RI."""
    return tuple(json.loads((plan.path.parent / FILE).read_text()))


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
