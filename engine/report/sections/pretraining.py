"""mRI of several pretrained models by the samples that they saw in pretraining."""

from __future__ import annotations

import itertools

import pandas

from engine.measures.comparisons import SIGNIFICANT, compare_pairs
from engine.measures.tables import ordered, rows
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted

NEAR = 5  # points of accuracy before fine-tuning within which two models are compared
MRI = ["mRI_pts", "mRI_low", "mRI_high"]


def section(results: Results) -> Section | None:
    """None unless two models saw different numbers of samples."""
    seen = {model: count for model, count in results.record.samples_seen.items() if count > 0}
    if len(set(seen.values())) < 2:
        return None
    data = results.shown[results.shown["model"].isin(seen)]
    data = data.assign(
        samples_seen=data["model"].map(seen),
        before_pct=data["arm"].map(results.grid.by_arm.set_index("arm")["before_pct"]),
    )
    data = ordered(data, samples_seen=sorted(seen.values()))
    pairs = _matched(results, data)
    shown = data[["method", "model", "samples_seen", "before_pct", *MRI]]
    is_significant = pairs["corrected_p"] < SIGNIFICANT
    more, less = ((is_significant & (pairs["difference_pts"] * way > 0)).sum() for way in (1, -1))
    words = f"mRI from {between(shown, 'mRI_pts', 'method', 'model')}."
    return Section(
        "samples-seen",
        f"With more samples seen in pretraining, mRI is significantly higher in {more} of "
        f"{counted('pair', len(pairs))} of models of similar accuracy before fine-tuning, lower in "
        f"{less}"
        if len(pairs)
        else f"No two models start within {NEAR} points of each other",
        "Models that saw more samples are more accurate before fine-tuning and have more to lose. "
        f"Pairs are therefore of models whose accuracy before differs by at most {NEAR} points. "
        "Numbers of samples are rounded as in the models' names; other properties of pretraining, "
        "such as the choice of data, differ too.",
        figures=[
            Figure(
                "samples-seen",
                "Mean accuracy before fine-tuning in percent (x) and mRI in points (y); one dot "
                "per model, in the order of samples seen.",
                words,
                shown,
                charts.scatter(shown, "before_pct", "mRI_pts", "model", facet="method"),
            )
        ],
        tables=[
            Table(
                "samples-seen",
                "mRI in points with 95% CIs, by samples seen in pretraining; before: mean accuracy "
                "in percent before fine-tuning on the datasets of mRI.",
                shown,
            ),
            Table(
                "samples-seen-pairs",
                f"Pairs of models within {NEAR} points of accuracy before fine-tuning: how many "
                "times as many samples the first saw, and the differences (first minus second) of "
                "accuracy before and of mRI in points, with 95% intervals and p, corrected for all "
                "pairs.",
                pairs,
            ),
        ],
    )


def _matched(results: Results, data: pandas.DataFrame) -> pandas.DataFrame:
    """One row per method and pair of models that start alike and saw different numbers of samples;
    the first saw more."""
    pairs = [
        (b, a)
        for a, b in itertools.combinations(rows(data), 2)
        if (a.key, a.variant, a.setting) == (b.key, b.variant, b.setting)
        and a.samples_seen < b.samples_seen
        and abs(a.before_pct - b.before_pct) <= NEAR
    ]
    table = pandas.DataFrame(
        {
            "method": [more.method for more, _ in pairs],
            "more_samples": [more.model for more, _ in pairs],
            "fewer_samples": [fewer.model for _, fewer in pairs],
            "times": [more.samples_seen / fewer.samples_seen for more, fewer in pairs],
            "before_pts": [more.before_pct - fewer.before_pct for more, fewer in pairs],
        }
    )
    names = ["difference_pts", "difference_low", "difference_high", "corrected_p"]
    if not pairs:
        return table.assign(**{name: pandas.Series(dtype=float) for name in names})
    arms = [(fewer.arm, more.arm) for more, fewer in pairs]
    found = compare_pairs(results.grid, arms, data["arm"].tolist()).query("set == ''")
    of_pairs = found[["difference", "low", "high", "p_corrected"]].set_axis(names, axis=1)
    return pandas.concat([table, of_pairs.reset_index(drop=True)], axis=1)
