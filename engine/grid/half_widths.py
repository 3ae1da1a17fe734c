"""How far the numbers of a sample may be from those of all images, and whether that is near enough.

These intervals are about the images at hand and shrink to nothing when all are seen; the bootstrap
intervals of the tables are about source images like these, resample those of the sample with their
weights, and stay.
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
from engine.measures import predictions, rows
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
    *,
    sequential: bool,
) -> list[HalfWidth]:
    """The intervals of every RI over `sets`, and of mRI of arms that have all columns.

    `sequential`: whether sampling stops as soon as they are narrow, which makes them wider. Each
    holds by itself with 95%; training seeds are taken as given.
    """
    cells: dict[Arm, dict[str, float]] = {}
    whole: dict[Arm, float] = {}
    for name in sets:
        hits = _hits(evaluations, samples[name], name, sets)
        for arm, columns in hits.items():
            values = np.stack([*columns.values(), np.mean([*columns.values()], axis=0)], axis=1)
            *each, mean = budget.seen(samples[name].frame, values).variance
            by_set = cells.setdefault(arm, dict.fromkeys(sets, 0.0))
            for downstream, variance in zip(columns, each, strict=True):
                by_set[downstream] += float(variance) / (len(sets) - 1) ** 2
            whole[arm] = whole.get(arm, 0.0) + float(mean) / len(sets) ** 2
    z = 100 * budget.quantile(budget.LOOKS if sequential else 1)
    found = []
    for arm, by_set in cells.items():
        trained = {cell.downstream for cell in evaluations if cell.arm == arm}
        found += [
            HalfWidth(*arm, name, z * variance**0.5)
            for name, variance in by_set.items()
            if name in trained
        ]
        if trained >= set(sets):
            found.append(HalfWidth(*arm, "", z * whole[arm] ** 0.5))
    return found


def note(found: Sequence[HalfWidth], samples: Mapping[str, Drawn]) -> str:
    """What a table says of its sample."""
    seen, of = _seen(samples)
    ri, mri = (
        max((row.half_width for row in found if bool(row.downstream) == of_sets), default=0.0)
        for of_sets in (True, False)
    )
    return (
        f"a sample, {seen} of {of} images ({seen / of:.1%}): of what all would say, each RI is "
        f"within {ri:.2f} points or less and mRI within {mri:.2f} (95%); other intervals resample "
        "the images drawn, with their weights"
    )


def write(
    folder: Path, place: Path, found: Sequence[HalfWidth], samples: Mapping[str, Drawn]
) -> None:
    """`half_widths.csv` beside the report, and the widest of a RI beside the plan (in `place`)."""
    rows.write(folder / "half_widths.csv", HalfWidth, found)
    assert found, "a campaign has columns, and each a RI"
    widest = max(row.half_width for row in found if row.downstream)
    seen, of = _seen(samples)
    write_atomic(place / FILE, json.dumps([seen / of, widest]).encode())


def sequential_plans(name: str, overrides: Sequence[str], cores: int) -> Iterator[campaign.Plan]:
    """The plans that a campaign has to run, one after the other.

    Without `evaluate.half_width` that is one. With it, each sees more images than the one before,
    and takes over what that evaluated; the last is the first whose intervals of RI are as narrow as
    asked, or that has reached `evaluate.budget`. What is known to be too wide is not run again.
    """
    plan = campaign.plan(name, overrides, cores)
    asked = recipe.load(name, overrides).evaluate
    if asked.half_width is None:
        yield plan
        return
    share = width = 0.0
    for number in range(1, budget.LOOKS + 1):
        share = budget.next_look(number, share, width, asked.half_width, asked.budget)
        plan = campaign.plan(name, [*overrides, f"evaluate.budget={share}"], cores)
        last, known = share == asked.budget, _known(plan)
        if last or known is None or known[1] <= asked.half_width:
            yield plan
            known = _known(plan)
        if last or known is None or known[1] <= asked.half_width:
            return
        share, width = known


def as_asked(plan: campaign.Plan, resolved: Recipe) -> tuple[str, ...]:
    """The overrides that a user gave, without the budget of this look."""
    return plan.overrides if resolved.evaluate.half_width is None else plan.overrides[:-1]


def _known(plan: campaign.Plan) -> tuple[float, float] | None:
    """What the plan's report found: share of the images seen, and the widest interval of a RI."""
    file = plan.path.parent / FILE
    return tuple(json.loads(file.read_text())) if file.is_file() else None


def _seen(samples: Mapping[str, Drawn]) -> tuple[int, int]:
    """Images of the samples, and of their sets."""
    seen = sum(one.images for one in samples.values())
    return seen, sum(len(one.index) for one in samples.values())


def _hits(
    evaluations: Sequence[Evaluation], sample: Drawn, name: str, sets: Sequence[str]
) -> dict[Arm, dict[str, np.ndarray]]:
    """Share of seeds [images, in the order of drawing] that were right, by arm and column."""
    drawn = sample.index[sample.frame.order[: sample.images]]
    by_seed: dict[Arm, dict[str, list[np.ndarray]]] = {}
    for cell in evaluations:
        if cell.evaluated_on != name or cell.method == PRE or cell.on_downstream:
            continue
        if cell.downstream not in sets:
            continue
        table = predictions.read(cell.path)
        right = table["top1"].to_numpy() == table["label"].to_numpy()
        right = right[np.searchsorted(table["index"].to_numpy(), drawn)]
        by_seed.setdefault(cell.arm, {}).setdefault(cell.downstream, []).append(right)
    return {
        arm: {downstream: np.mean(several, axis=0) for downstream, several in columns.items()}
        for arm, columns in by_seed.items()
    }
