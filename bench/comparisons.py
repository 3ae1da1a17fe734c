"""How often `rib compare` calls equal models different, and how often its intervals hold.

    python -m bench.comparisons [--draws 2000]

Drawn models answer rightly where a normal variable is above 0. The variable is the sum of a photo's
difficulty, which both models share; of terms of a model with a photo and with an image; and of a
term of each training, if there are several. The true difference is therefore known. The program
prints, by number of seeds, how often equal models differ in the mean over datasets, how often on
any dataset after Holm's correction, and how often the 95% interval of different models holds the
truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from scipy import special

from engine.measures import paired

SEEDS = (1, 2, 3, 5)
LEVEL, BETTER = 0.5, 0.65  # means of the variable
PHOTO, MODEL, IMAGE, TRAINING = 0.7, 0.3, 0.8, 0.1  # standard deviations
CASES = {  # datasets, photos, and the largest number of a photo's images in a dataset
    "1 set, 500 photos": (1, 500, 1),
    "1 set, 20 photos": (1, 20, 1),
    "1 set, 200 photos, up to 75 images each": (1, 200, 75),
    "1 set, 20 photos, up to 75 images each": (1, 20, 75),
    "8 sets of 200 photos": (8, 200, 1),
    "8 sets of 20 photos, up to 75 images each": (8, 20, 75),
}


def simulate(
    rng: np.random.Generator, sets: int, photos: int, most: int, seeds: int
) -> tuple[bool, bool, bool]:
    """Of one draw: whether equal models are called different, on any dataset after Holm, and
    whether the interval of different models holds the truth."""
    source = np.repeat(np.tile(np.arange(photos), sets), rng.integers(1, most + 1, sets * photos))
    starts = np.flatnonzero(np.diff(source, prepend=photos) < 0)
    place = np.searchsorted(starts, np.arange(len(source)), side="right") - 1
    shared = PHOTO * rng.standard_normal(photos)[source]
    own = MODEL * rng.standard_normal((2, photos))[:, source]
    own += IMAGE * rng.standard_normal((2, len(source)))
    of_training = TRAINING if seeds > 1 else 0  # with one seed, intervals are of this training
    moved = of_training * rng.standard_normal((2, seeds, 1))
    latent = LEVEL + shared + own[:, None] + moved
    first, second = 100.0 * (latent[0] > 0), 100.0 * (latent[1] > 0)
    better = 100.0 * (latent[1] + BETTER - LEVEL > 0)
    whole = paired.difference(first, second, place, source, same_seeds=True)
    claims = abs(whole.value) > whole.half_width()
    on_any = claims
    if sets > 1:
        of_sets = (
            paired.difference(
                first[:, here],
                second[:, here],
                np.zeros(here.sum(), int),
                source[here],
                same_seeds=True,
            )
            for here in (place == k for k in range(sets))
        )
        on_any = any(abs(of.value) > of.half_width(1 - 0.05 / sets) for of in of_sets)
    deviation = np.sqrt(PHOTO**2 + MODEL**2 + IMAGE**2 + of_training**2)
    true = 100 * np.diff(special.ndtr(np.array([LEVEL, BETTER]) / deviation))[0]
    found = paired.difference(first, better, place, source, same_seeds=True)
    return bool(claims), bool(on_any), bool(abs(found.value - true) <= found.half_width())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.comparisons", description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args(arguments).draws
    print("| models | " + " | ".join(f"seeds: {count}" for count in SEEDS) + " |")
    for name, case in CASES.items():
        cells = []
        for seeds in SEEDS:
            rng = np.random.default_rng(0)
            found = np.mean([simulate(rng, *case, seeds) for _ in range(draws)], axis=0)
            cells.append("{:.1%}, {:.1%}, {:.1%}".format(*found))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
