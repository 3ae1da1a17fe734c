"""The report's tables for the terminal, as at the end of `make demo`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas

from engine.measures import tables
from engine.measures.comparisons import SIGNIFICANT
from engine.report import console
from engine.report.headline import averaged_over, measured_on
from engine.report.results import Results
from engine.report.text import ABSENT, ascii_signed, counted, p_value, rounded, set_head


def table(results: Results, notes: Sequence[str] = ()) -> str:
    """One table per model with one row per method: RI per downstream dataset, and mRI with its
    interval; then the notes."""
    below = [textwrap.fill(f"note: {note}", console.WIDTH) for note in notes]
    return "\n\n".join([*(_ri(results, model) for model in results.models), *below])


def _ri(results: Results, model: str) -> str:
    names, before, record = results.downstreams(model), results.before(model), results.record
    known = [rounded(before[name]) if name in before else ABSENT for name in names]
    ri = results.ri.set_index(["arm", "downstream"])["RI_pts"]
    shown = results.shown[results.shown["model"] == model]
    disjoint = results.disjoint.set_index("arm")["disjoint_mRI_pts"]
    is_disjoint = len(disjoint) > 0
    return console.text(
        f"{model} on {record.benchmark}, version {record.version}\n"
        f"RI: mean change in accuracy on {measured_on(results)}, in points, after "
        "fine-tuning on the dataset that heads the column; mRI: its mean over "
        f"{averaged_over(results)}{results.one_training}"
        f"{'; disjoint: mRI without related datasets' * is_disjoint}.",
        ["", *map(set_head, names), "mRI", "95% interval", *["disjoint"] * is_disjoint],
        [["pretrained %", *known, "", "", *[""] * is_disjoint]],
        [
            [
                line.method,
                *map(ascii_signed, ri.loc[line.arm].reindex(names)),
                ascii_signed(line.mRI_pts),
                _span(line.mRI_low, line.mRI_high),
                *map(ascii_signed, disjoint.reindex([line.arm] * is_disjoint)),
            ]
            for line in tables.rows(shown)
        ],
    )


def comparisons(results: Results, model: str, against: str | None = None) -> str:
    """Every method against one of them, or the best: paired difference in mRI, corrected p, and the
    number of datasets on which its mean accuracy is significantly higher and lower. p is corrected
    for all pairs of methods, whatever the reference.
    """
    ranked, sets = results.ranked(model).set_index("arm"), results.grid.sets
    wanted = ranked[ranked["key"] == against] if against else ranked
    if wanted.empty:
        return f"{model}\nNo finished method to compare with."
    reference = wanted.iloc[0]
    overall = results.against(wanted.index[0])
    on_sets = pandas.concat([results.against(wanted.index[0], name) for name in sets])
    proven = on_sets.loc[on_sets["p_corrected"] < SIGNIFICANT, "difference_pts"]
    rows = [
        [
            line.method,
            ascii_signed(line.mRI_pts),
            ascii_signed(line.difference_pts),
            _span(line.difference_low, line.difference_high),
            p_value(line.p),
            p_value(line.p_corrected),
            *(str((of[of.index == line.arm] > 0).sum()) for of in (proven, -proven)),
        ]
        for line in tables.rows(ranked.join(overall, how="inner").reset_index())
    ]
    return console.text(
        f"{model}\nAgainst {reference['method']} (mRI {ascii_signed(reference['mRI_pts'])}), "
        f"paired over the same images{results.one_training}. Differences in mRI, in points; p of "
        f"{'a t test' if results.covers_training else 'a normal test'} with the deviation over "
        f"images{' and seeds' * results.covers_training}, corrected (Holm) for "
        f"{counted('comparison', results.family)}. Better and worse: the number of the "
        f"{len(sets)} datasets, by the same test, corrected for {results.family * len(sets)}. "
        f"Population: {results.population_of_mri}.",
        ["", "mRI", "difference", "95% interval", "p", "corrected p", "better on", "worse on"],
        rows,
    )


def _span(low: float, high: float) -> str:
    return f"[{ascii_signed(low)}, {ascii_signed(high)}]"
