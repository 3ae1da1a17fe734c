"""Which sets are related: they show the same photos, or one maker drew or made both.

A model that is fine-tuned on a set has seen the photos, or the hand, of the sets that are related
to it, so its change there says less about new data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set

import numpy as np
import pandas

COLUMNS = ["set", "related_to", "shared_pct", "family"]


def photos(sources: np.ndarray, labels: np.ndarray) -> frozenset[str]:
    """The source images of a set; none where a class is a single source (an emoji's concept), so
    that sources do not distinguish one photo of a class from another.

    sources: str [N]. labels: int [N].
    """
    names = np.unique(sources)
    return frozenset(names.tolist() if len(names) > len(np.unique(labels)) else ())


def of(
    photos_of: Mapping[str, Set[str]], families: Mapping[str, Sequence[str]]
) -> pandas.DataFrame:
    """The related sets, a row an ordered pair: the set, what it is related to, the percentage of
    its photos that are in the other, and the family of both (empty where they have none in common).

    photos_of: by set, its `photos`. families: by name, the sets that one maker drew or made.
    """
    rows = []
    for name, other in itertools.permutations(photos_of, 2):
        shared = len(photos_of[name] & photos_of[other]) / max(1, len(photos_of[name]))
        makers = [family for family, sets in families.items() if {name, other} <= {*sets}]
        if shared or makers:
            rows.append((name, other, 100 * shared, ", ".join(makers)))
    return pandas.DataFrame(rows, columns=COLUMNS)
