"""Find related datasets, which show the same photos or have the same maker.

A model fine-tuned on a dataset has seen the photos, or the style, of related datasets, so its
change there says less about new data. `metrics.Grid.disjoint_mri` excludes these datasets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from engine.measures.rows import trained_sets

if TYPE_CHECKING:
    import pandas

COLUMNS = ["set", "related_to", "shared_pct", "maker"]


def related_datasets(
    photos_of: Mapping[str, Set[str]],
    makers: Mapping[str, Sequence[str]],
    downstreams: Sequence[str] = (),
) -> pandas.DataFrame:
    """The related datasets, one row per ordered pair: the dataset, the related one, the percentage
    of its photos that the other contains, and their common maker (empty if none).

    photos_of: `photos` by dataset. makers: datasets by maker. downstreams: of unions `A+B`
    among them, rows for the other datasets that are related to one of the union's follow, with the
    largest shared percentage.
    """
    import pandas  # late: stored predictions are read and written without it

    rows = []
    for name, other in itertools.permutations(photos_of, 2):
        shared = len(photos_of[name] & photos_of[other]) / max(1, len(photos_of[name]))
        common = [maker for maker, sets in makers.items() if {name, other} <= {*sets}]
        if shared or common:
            rows.append((name, other, 100 * shared, ", ".join(common)))
    related = pandas.DataFrame(rows, columns=COLUMNS)
    tables = [related]
    for union in downstreams:
        parts = trained_sets(union)
        if len(parts) > 1:
            of_union = related[related["related_to"].isin(parts) & ~related["set"].isin(parts)]
            of_union = of_union.sort_values("shared_pct", ascending=False, kind="stable")
            tables.append(of_union.drop_duplicates("set").sort_index().assign(related_to=union))
    return pandas.concat(tables, ignore_index=True)
