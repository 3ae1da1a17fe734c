"""How often tests between equal methods claim a difference, by the number of training seeds.

    python -m bench.simulated_seeds [--campaigns 2000]

A campaign has 10 rows of the same true mRI, so 45 pairs, and 8 columns. Numbers are normal: an
error over images, which all seeds share, and one over seeds, of each column and seed anew. r is the
variance over seeds of a difference in mRI, of as many seeds as there are, over its variance over
images. Rows are `independent`; or `like the demo's`, where one row is the same with every seed and
three are mixes of others, whose errors they share.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pandas

from engine.measures import paired, seeds
from engine.measures.paired import ImageError
from engine.measures.seeds import SeedError

ROWS, COLUMNS = 10, 8
SOURCES = 1000  # of the images, whose variance is known
FIXED = 1  # a row that is the same with every seed
MIXES = {7: {0: 0.6}, 8: {0: 1 / 3, 4: 1 / 3, 5: 1 / 3}, 9: {0: 0.5, 4: 0.5}}
LEFT, RIGHT = np.array(list(itertools.combinations(range(ROWS), 2))).T
RATIOS = (0.3, 1, 3, 10, 30)
SEEDS = (2, 3, 5, 10)


def errors_over_seeds(
    rng: np.random.Generator,
    shape: tuple[int, int],
    rows: str,
    columns_differ: float = 1,
    rows_differ: float = 1,
    shared: float = 0,
) -> np.ndarray:
    """[campaigns, seeds, columns, rows] of variance 1 for most rows.

    columns_differ, rows_differ: the largest variance of a column, or a row, over the least. shared:
    the part of the variance that is the same for all rows.
    """
    campaigns = shape[0]
    errors = rng.standard_normal((*shape, COLUMNS, ROWS)) * np.sqrt(1 - shared)
    errors += rng.standard_normal((*shape, COLUMNS, 1)) * np.sqrt(shared)
    exponents = rng.uniform(-0.5, 0.5, (campaigns, 1, 1, ROWS))
    errors *= np.sqrt(rows_differ**exponents)
    variance = columns_differ ** rng.uniform(-0.5, 0.5, (campaigns, 1, COLUMNS, 1))
    errors *= np.sqrt(variance / variance.mean(axis=2, keepdims=True))
    if rows != "independent":
        errors[..., FIXED] = 0
        for mix, parts in MIXES.items():
            errors[..., mix] = sum(part * errors[..., row] for row, part in parts.items())
    return errors


def pairs(values: np.ndarray) -> np.ndarray:
    """Of values [..., rows] their differences [..., pairs]."""
    return values[..., LEFT] - values[..., RIGHT]


def moderated(own: SeedError, campaigns: int, rows: str) -> SeedError:
    """The error of all pairs of all campaigns, as the engine has it."""
    mixes = [] if rows == "independent" else [*MIXES, FIXED]
    trains = ~np.isin(LEFT, mixes) & ~np.isin(RIGHT, mixes)
    groups = pandas.Series(np.repeat(np.arange(campaigns), len(LEFT)))
    varies = np.ones(len(groups), bool)
    return seeds.moderated(own, groups, varies, np.tile(trains, campaigns), of_pairs=True)


def claims(values: np.ndarray, error: SeedError) -> tuple[float, float, float]:
    """Of differences [campaigns, pairs] of 0, with a variance of 1 over images: how many campaigns
    claim any after Holm, the share of intervals that hold 0, and their median width."""
    images = ImageError(np.ones(values.size), np.full(values.size, SOURCES - 1.0))
    ends, p = paired.tested(values.ravel(), [images, error])
    least = p.reshape(values.shape).min(axis=1)  # which Holm multiplies by the number of pairs
    any_claim = np.mean(least * values.shape[1] < 0.05)
    holds = np.mean((ends[0] <= 0) & (ends[1] >= 0))
    return float(any_claim), float(holds), float(np.median(ends[1] - ends[0]))


def of_seeds(
    campaigns: int, count: int, r: float, rows: str, **differ: float
) -> tuple[float, float, float]:
    """`claims` of campaigns with several seeds."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((campaigns, 1, ROWS)) * np.sqrt(0.5)
    scale = np.sqrt(r / 2 * count * COLUMNS)
    errors = scale * errors_over_seeds(rng, (campaigns, count), rows, **differ).mean(axis=2)
    by_seed = np.moveaxis(pairs(images + errors), 1, 0)
    own = seeds.of_mean(by_seed.reshape(count, -1))
    return claims(by_seed.mean(axis=0), moderated(own, campaigns, rows))


def of_replicates(
    campaigns: int, r: float, rows: str, **differ: float
) -> tuple[float, float, float]:
    """`claims` of campaigns with one seed and a column that was trained twice."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((campaigns, ROWS)) * np.sqrt(0.5)
    scale = np.sqrt(r / 2 * COLUMNS)
    errors = scale * errors_over_seeds(rng, (campaigns, 2), rows, **differ)
    values = pairs(images + errors[:, 0].mean(axis=1))
    change = pairs(errors[:, 1, 0] - errors[:, 0, 0])
    own = SeedError((change**2 / 2 / COLUMNS).ravel(), np.ones(values.size))
    return claims(values, moderated(own, campaigns, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=2000)
    count = parser.parse_args(arguments).campaigns
    print(f"{count} campaigns a cell. Any false claim, nominal at most 5%; 95% intervals that hold")
    kinds = {
        "independent": {},
        "like the demo's": {},
        "like the demo's, of variances that differ by 4": {"rows_differ": 4},
        "like the demo's, half of the variance shared": {"shared": 0.5},
    }
    for number, (kind, differ) in itertools.product(SEEDS, kinds.items()):
        rows = kind.partition(",")[0]
        cell = functools.partial(of_seeds, count, number, rows=rows, **differ)
        _print(f"{number} seeds, rows {kind}", cell)
    columns = {f", columns that differ by {k}": {"columns_differ": k} for k in (4, 16)}
    for (kind, of_rows), (more, of_columns) in itertools.product(
        kinds.items(), {"": {}, **columns}.items()
    ):
        rows, differ = kind.partition(",")[0], of_rows | of_columns
        cell = functools.partial(of_replicates, count, rows=rows, **differ)
        _print(f"a seed and a replicate, rows {kind}{more}", cell)
    return 0


def _print(title: str, cell: Callable[..., tuple[float, float, float]]) -> None:
    print(f"\n{title}")
    found = [cell(r=r) for r in RATIOS]
    for what, k, form in (("false claims", 0, ".1%"), ("held", 1, ".1%"), ("width", 2, ".2f")):
        row = "  ".join(f"{each[k]:>6{form}}" for each in found)
        print(f"  {what:13} {row}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
