"""Compare tables of scores that other programs wrote, by the paired t test (`paired`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas

from engine.measures import paired
from engine.measures.comparisons import COMPARED, holm
from engine.measures.score_tables import ScoreTable


def compare_scores(tables: Sequence[ScoreTable]) -> pandas.DataFrame:
    """Compare each further table with the first, on the images that both have.

    Columns: `comparisons.COMPARED`. Raises ValueError if two tables share no image of a dataset,
    differ in the source or the label of an image, or one has `correct` and the other `score`.
    """
    pairs = [_pair(tables[0], other, len(tables) - 1) for other in tables[1:]]
    table = pandas.concat(pairs, ignore_index=True)
    family = table["set"] == ""
    for rows in (family, ~family):
        table.loc[rows, "adjusted_p"] = holm(table.loc[rows, "p"].to_numpy())
    return table[COMPARED]


def _pair(a: ScoreTable, b: ScoreTable, comparisons: int) -> pandas.DataFrame:
    if a.is_correct != b.is_correct:
        raise ValueError(f"{a.name} and {b.name}: one has the column correct, the other score")
    wide = [of.rows.pivot(index=["set", "image"], columns="seed", values="score") for of in (a, b)]
    shared = wide[0].dropna().index.intersection(wide[1].dropna().index)
    if shared.empty:
        raise ValueError(_without_shared(a, b, wide))
    _check_labels(a, b, shared)
    names = shared.get_level_values("set")
    codes = pandas.factorize(_sources(a, b, shared))[0]
    first, second = (scores.loc[shared].to_numpy().T for scores in wide)
    same_seeds = list(wide[0].columns) == list(wide[1].columns)
    rows = []
    every = [str(name) for name in names.unique()]
    for name in ["", *every[: len(every) * (len(every) > 1)]]:
        chosen = np.flatnonzero((names == name) | (name == ""))
        of_sets = pandas.factorize(names[chosen])[0]
        of_a, of_b = first[:, chosen], second[:, chosen]
        found = paired.difference(of_a, of_b, of_sets, codes[chosen], same_seeds=same_seeds)
        family = comparisons * (len(every) if name else 1)
        half = found.half_width()
        detectable = paired.minimum_detectable_difference(found.errors, family).item()
        means = [
            pandas.Series(of.mean(axis=0)).groupby(of_sets).mean().mean() for of in (of_a, of_b)
        ]
        only = [int(((of.index.get_level_values(0) == name) | (name == "")).sum()) for of in wide]
        rows.append(
            {
                "a": a.name,
                "b": b.name,
                "set": name,
                "quantity": "accuracy, percent" if a.is_correct else "score",
                "a_mean": means[0],
                "b_mean": means[1],
                "difference": found.value,
                "low": found.value - half,
                "high": found.value + half,
                "p": found.p,
                "minimum_detectable_difference": detectable,
                "images": len(chosen),
                "only_a": only[0] - len(chosen),
                "only_b": only[1] - len(chosen),
                "sources": found.sources,
                "seeds": min(len(first), len(second)),
                "test": paired.TEST,
                "notes": " ".join(_notes(a, b)),
            }
        )
    return pandas.DataFrame(rows)


def _without_shared(a: ScoreTable, b: ScoreTable, wide: Sequence[pandas.DataFrame]) -> str:
    """Why two tables cannot be paired, with the first image of each."""
    (set_a, image_a), (set_b, image_b) = (scores.index[0] for scores in wide)
    if bool(set_a) != bool(set_b):
        some, none = (a.name, b.name) if set_a else (b.name, a.name)
        return (
            f"{some} names datasets, such as {set_a or set_b!r}, and {none} names none: give both "
            "a column set with the same names, or neither"
        )
    of_sets = [f" of dataset {name!r}" if name else "" for name in (set_a, set_b)]
    seeds = " in every seed" if max(scores.shape[1] for scores in wide) > 1 else ""
    return (
        f"{a.name} and {b.name} share no image{seeds}: the first image is {image_a!r}{of_sets[0]} "
        f"and {image_b!r}{of_sets[1]}; name images and datasets alike in both"
    )


def _check_labels(a: ScoreTable, b: ScoreTable, shared: pandas.Index) -> None:
    """Raise ValueError for the first image whose true class differs between two tables."""
    if not (a.has_labels and b.has_labels):
        return
    first, second = (_by_image(table, "label", shared) for table in (a, b))
    if (differs := np.flatnonzero(first != second)).size:
        name, image = shared[k := differs[0]]
        raise ValueError(
            f"{a.name} and {b.name} number classes differently: image {image!r}"
            f"{f' of dataset {name!r}' if name else ''} has the label {first[k]} in one and "
            f"{second[k]} in the other ({len(differs):,} of {len(shared):,} images differ); number "
            "the classes of both alike, or give correct in place of label and prediction"
        )


def _sources(a: ScoreTable, b: ScoreTable, shared: pandas.Index) -> np.ndarray:
    """The source of each shared image, from a table that names sources."""
    named = [table for table in (a, b) if table.has_sources] or [a]
    first, *others = [_by_image(table, "source", shared) for table in named]
    if any((first != other).any() for other in others):
        raise ValueError(f"{a.name} and {b.name}: an image has two sources")
    return first


def _by_image(table: ScoreTable, column: str, shared: pandas.Index) -> np.ndarray:
    """The value of each shared image. Raises ValueError if rows of an image differ."""
    values = table.rows.groupby(["set", "image"])[column]
    if (differs := values.nunique().loc[shared] > 1).any():
        raise ValueError(
            f"{table.name}: image {shared[differs][0][1]!r} has two values of {column}"
        )
    return values.first().loc[shared].to_numpy()


def _notes(a: ScoreTable, b: ScoreTable) -> Iterator[str]:
    """What two tables leave unknown."""
    if not (a.has_sources or b.has_sources):
        yield (
            "No table has a column source, so images count as independent: if several show one "
            "photo, intervals are too narrow and differences are claimed too often."
        )
    if a.is_correct and not (a.has_labels and b.has_labels):
        lacking = [table.name for table in (a, b) if not table.has_labels]
        yield f"Without labels of {' and '.join(lacking)}, equal true classes are not checked."
