"""Training dynamics: whether robustness falls before downstream accuracy saturates.

Let n be the number of evaluated downstream datasets i, and A_i^(j)(s) the accuracy in percent on
dataset j of the model fine-tuned on dataset i for s steps (0: the pretrained model). On a union i,
A_i^(i) is the mean over its datasets:

    downstream(s) = 1/n sum_i A_i^(i)(s)
    ood(s)        = 1/n sum_i (mean of A_i^(j)(s) over the datasets j of RI except i)
    upstream(s)   = 1/n sum_i A_i^(up)(s)

The claim of ImageNet-RIB's slides, made precise:

- The peak is the first step of the highest ood(s).
- Downstream accuracy saturates at the first step whose downstream(s) has reached 95% of its total
  rise, from downstream(0) to its highest value. Without a rise there is no claim.
- The fall is ood(best) - ood(saturation), where best is the first step of the highest ood(s) before
  saturation, step 0 included.
- Robustness falls before downstream accuracy saturates if the fall's interval is above 0. Because
  best is chosen among m earlier steps, the interval has the level 1 - 0.05 / m (Bonferroni), so it
  is simultaneous for all m. The two steps themselves are treated as fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas
from scipy import sparse

from engine.measures import bootstrap, seeds
from engine.measures.metrics import Grid, Means
from engine.measures.rows import Arm, trained_sets
from engine.measures.tables import ordered

SATURATED = 0.95  # of the total rise


def curves(grid: Grid) -> list[tuple[Arm, pandas.DataFrame, pandas.DataFrame]]:
    """For every arm with snapshots: the arm without its step, its curves and its claim.

    Curves: one row per quantity (`downstream`, `ood`, `upstream`) and step, starting at step 0,
    with the value in percent and the bounds of its interval (`low`, `high`). Claim: one row
    (`claim`), or none if downstream accuracy does not rise. Both are empty if no downstream dataset
    is evaluated.

    Raises ValueError if a model and the pretrained model saw different images of the downstream
    dataset, because the curve then has no common start.
    """
    snapshots: dict[Arm, dict[int, int]] = {}  # by a cell's arm: the snapshot's index by step
    for place, arm in enumerate(grid.arms):
        if arm.step is not None:
            snapshots.setdefault(arm.without_step, {})[arm.step] = place
    evaluated = {*grid.cells["evaluated_on"]}
    columns = [name for name in grid.downstreams if evaluated.issuperset(trained_sets(name))]
    cells = grid.cells[grid.cells["downstream"].isin(columns)]
    if not columns:
        return []
    return [(arm, *_of_arm(grid, cells, dict(sorted(of.items())))) for arm, of in snapshots.items()]


def claim(
    steps: Sequence[int], values: np.ndarray, draws: np.ndarray, by_seed: np.ndarray
) -> pandas.DataFrame:
    """The claim from curves [2, steps] of downstream and OOD accuracy, their draws [B, 2, steps]
    and those of each seed [S, 2, steps], all in percent; empty if downstream accuracy does not
    rise.

    `peak`, `saturation` and `best` are steps, with their OOD accuracies in percent; `fall` is in
    points, with the bounds of its interval. holds: whether the lower bound is above 0.
    """
    downstream, ood = values
    rise = downstream - downstream[0]
    if rise.max() <= 0:
        return pandas.DataFrame()
    saturation = int(np.argmax(rise >= SATURATED * rise.max()))
    best, peak = int(np.argmax(ood[:saturation])), int(np.argmax(ood))
    fall, samples, of_seeds = (
        curves[..., 1, [best]] - curves[..., 1, [saturation]] for curves in (values, draws, by_seed)
    )
    level = 1 - (1 - bootstrap.LEVEL) / saturation
    ends = bootstrap.interval(samples, level)
    low, high = seeds.widened(fall, ends, seeds.of_mean(of_seeds), level)[:, 0].tolist()
    row = {
        "peak": steps[peak],
        "peak_OOD": float(ood[peak]),
        "saturation": steps[saturation],
        "saturation_OOD": float(ood[saturation]),
        "best": steps[best],
        "fall": float(fall[0]),
        "fall_low": low,
        "fall_high": high,
        "holds": low > 0,
    }
    return pandas.DataFrame([row])


def _of_arm(
    grid: Grid, cells: pandas.DataFrame, places: Mapping[int, int]
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Curves and claim of these cells. places: indices of the snapshots' arms, by step."""
    cells = ordered(cells[cells["arm"].isin(places.values())], arm=places.values())
    parts = {
        "downstream": cells[cells["on_downstream"]],
        "ood": cells[~cells["on_downstream"] & cells["evaluated_on"].isin(grid.sets)],
        "upstream": cells[cells["evaluated_on"] == grid.upstream],
    }
    parts = {name: of for name, of in parts.items() if len(of)}
    images = parts["downstream"].set_index("evaluated_on")[["images", "before"]]
    for name, n, before in images.itertuples():
        if grid.cells["images"].iloc[before] != n:
            raise ValueError(
                f"models fine-tuned on {name} and the pretrained model saw different images of "
                "it: evaluate all of them on the same split"
            )
    steps, weights = [0, *places], []
    for of in parts.values():
        first = of[of["arm"] == places[steps[1]]]
        means = grid.mean(first, ["arm"], of="before"), grid.mean(of, ["arm"])
        weights += [each.weights for each in means]
    keys = pandas.DataFrame(itertools.product(parts, steps), columns=["quantity", "step"])
    means = Means(grid, keys, sparse.csc_array(sparse.hstack(weights)))
    points = means.table("value").rename(columns={"value_low": "low", "value_high": "high"})
    shape = len(parts), len(steps)
    values, draws = means.values().reshape(shape), means.draws().reshape(-1, *shape)
    by_seed = (grid.by_seed["accuracy"] @ means.weights).reshape(-1, *shape)
    return points, claim(steps, values[:2], draws[:, :2], by_seed[:, :2])
