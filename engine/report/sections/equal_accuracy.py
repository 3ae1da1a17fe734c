"""Robustness at equal downstream accuracy, along a curve of interpolated models."""

from __future__ import annotations

import pandas

from engine.measures.equal_accuracy import against_curve
from engine.report.results import Results, title
from engine.report.section import Section, Table
from engine.report.text import counted, listed


def section(results: Results) -> Section | None:
    """None unless a curve reaches the downstream accuracy of a method."""
    data = _compared(results)
    if data.empty or data["difference_pts"].isna().all():
        return None
    known = data.dropna(subset="difference_pts")
    above, below = (known["difference_low"] > 0).sum(), (known["difference_high"] < 0).sum()
    curves = listed([*dict.fromkeys(data["curve"])])
    reached = {*known["method"]}
    out = [name for name in dict.fromkeys(data["method"]) if name not in reached]
    return Section(
        "equal-accuracy",
        f"At equal downstream accuracy, methods are significantly more robust than {curves} in "
        f"{above} of {counted('comparison', len(known))}, less in {below}",
        "A method that adapts less often loses less. Each method is therefore compared with the "
        "interpolation that has the same mean accuracy on the downstream datasets, linearly "
        "between two evaluated alphas (the trade-off chart shows the curve). Intervals are paired, "
        f"and not corrected for their number. They generalise to {results.population}."
        + " No images are held out: downstream accuracy is that on the images trained on."
        * (not results.record.holdout)
        + (f" The curve does not reach the accuracy of {listed(out)}." if out else ""),
        tables=[
            Table(
                "equal-accuracy",
                "Mean accuracy in percent on the downstream datasets and on the other datasets, "
                "that of the curve on the other datasets at equal downstream accuracy, and the "
                "difference (method minus curve) in points, with 95% intervals.",
                data,
            )
        ],
    )


def _compared(results: Results) -> pandas.DataFrame:
    """One row per curve and shown method of the same model and setting."""
    arms, parts = results.arms, []
    if "on_downstream_dataset_pct" not in arms:
        return pandas.DataFrame()
    names = arms.set_index("arm")["method"]
    mixed = arms[arms["alpha"].notna()]
    shown_arms = results.shown
    for (model, key, _, setting), curve in mixed.groupby(
        ["model", "key", "variant", "setting"], sort=False
    ):
        is_alike = (shown_arms["model"] == model) & (shown_arms["setting"] == setting)
        shown = shown_arms[is_alike & (shown_arms["key"] != key)]
        if len(curve) < 2 or shown.empty:
            continue
        points = curve.sort_values("alpha")["arm"].tolist()
        table = against_curve(results.grid, points, shown["arm"].tolist())
        curve_arm = results.grid.arms[points[0]]._replace(alpha=None)
        table.insert(0, "curve", title(curve_arm, results.record.methods))
        table.insert(1, "method", table.pop("arm").map(names))
        parts.append(table.assign(model=str(model))[["model", *table]])
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()
