"""Pretrained models, the table, the ranking, and the trade-off of adaptation and robustness."""

from __future__ import annotations

import itertools
from statistics import fmean
from typing import Any

import pandas

from engine.measures.bootstrap import SIGNIFICANT
from engine.measures.comparisons import compare_pairs
from engine.measures.rows import UNION, trained_sets
from engine.measures.tables import extremes, groups, ordered, rows, with_ends
from engine.report import charts, tuning
from engine.report.columns import between
from engine.report.headline import finding
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted, listed, slug

MRI = with_ends("mRI_pts")
NEAR = 5  # points of accuracy before fine-tuning within which two models are compared
SAME_LETTER = (
    ". Methods that share a letter do not differ significantly (paired tests at "
    f"{SIGNIFICANT:.0%}, adjusted for all pairs)"
)
X, Y = "downstream_accuracy_pct", "OOD_accuracy_pct"  # of the trade-off


def models(results: Results) -> Section | None:
    """Methods by pretrained models, if there are several."""
    data = results.ranked()[["model", "method", *MRI]]
    if len(results.models) < 2 or data.empty:
        return None
    wide = data.pivot_table("mRI_pts", "method", "model", sort=False).add_suffix("_pts")
    _, best = extremes(data, "mRI_pts")
    caption = (
        f"mRI in points, averaged over {results.averaged_over}{results.one_training}: one row per "
        "method, one column per pretrained model."
    )
    words = f"mRI from {between(data, 'mRI_pts', 'method', 'model')}."
    spec = charts.heat(data, "model", "method", "mRI_pts")
    heading = f"{best['method']} from {best['model']} has the highest mRI{results.one_training}"
    text = "\n".join(f"{model}: {finding(results, model)}" for model in results.models)
    if selection := selection_note(results):
        heading, text = words.removesuffix("."), selection
    return Section(
        "models",
        heading,
        text,
        [Figure("models", caption, words, data, spec)],
        [Table("models", caption, wide.rename_axis(columns=None).reset_index(), [*wide.columns])],
        is_open=True,
    )


def by_samples_seen(results: Results) -> Section | None:
    """mRI of pretrained models by the samples that they saw in pretraining; None unless two saw
    different numbers."""
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
    is_significant = pairs["adjusted_p"] < SIGNIFICANT
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
                "mRI in points with 95% intervals, by samples seen in pretraining; before: mean "
                "accuracy in percent before fine-tuning on the datasets of mRI.",
                shown,
            ),
            Table(
                "samples-seen-pairs",
                f"Pairs of models within {NEAR} points of accuracy before fine-tuning: how many "
                "times as many samples the first saw, and the differences (first minus second) of "
                "accuracy before and of mRI in points, with 95% intervals and p, adjusted for all "
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
    names = [*with_ends("difference_pts"), "adjusted_p"]
    if not pairs:
        return table.assign(**{name: pandas.Series(dtype=float) for name in names})
    arms = [(fewer.arm, more.arm) for more, fewer in pairs]
    found = compare_pairs(results.grid, arms, data["arm"].tolist()).query("set == ''")
    of_pairs = found[["difference", "low", "high", "adjusted_p"]].set_axis(names, axis=1)
    return pandas.concat([table, of_pairs.reset_index(drop=True)], axis=1)


def methods(results: Results) -> Section | None:
    """RI by downstream dataset and mRI of every method; the ranking by mRI."""
    arms = results.ranked()
    if arms.empty:
        return None
    published = pandas.Series([*map(results.published_mri, rows(arms))], arms.index, float)
    arms = arms.assign(published_mRI_pts=published)
    numbers = [name for name in map(str, arms) if name.endswith(("_pts", "_pct", "_low", "_high"))]
    data = arms[["model", "method", "variant", *numbers]].dropna(axis=1, how="all")
    letters = {arm: of for model in results.models for arm, of in results.letters(model).items()}
    same_letter = ""
    if letters:
        data.insert(3, "letters", arms["arm"].map(letters).fillna(""))
        same_letter = SAME_LETTER
    upstream = results.record.upstream
    caption = (
        f"mRI with its 95% interval{results.one_training}, in points; mean accuracy on the "
        "downstream dataset and on the other datasets (OOD), in percent"
        f"{f'; mean change on {upstream}, in points' if upstream else ''}"
        f"{'; the published mRI' if 'published_mRI_pts' in data else ''}{same_letter}."
    )
    if X in data:
        caption += chosen_on_its_set(results)
    ranking = Table("ranking", caption, data)
    heading = _heading(results) or (
        f"mRI ranges from {between(data, 'mRI_pts', 'method')}{results.one_training}"
    )
    if found := tuning.tuned(results):
        heading = f"{found.methods['method'].iloc[0]} ranks first by mRI, tuned on held-out images"
    selection = selection_note(results)
    note = f" There is one row per setting. {selection}" if selection else ""
    return Section(
        "ranking",
        heading,
        "mRI: mean change in accuracy on datasets a model was not fine-tuned on, averaged over "
        f"{results.averaged_over}.{note}",
        figures=charts.by_model(
            results,
            "ranking",
            f"mRI in points, with its 95% interval{results.one_training}{same_letter}",
            data[["model", "method", *MRI, *filter(data.__contains__, ["letters"])]],
            ("mRI_pts", "method"),
        ),
        tables=[*(_by_set(results, *of) for of in groups(results.ri, "model")), ranking],
        is_open=True,
    )


def selection_note(results: Results) -> str:
    """Why no row is called the best if settings vary; otherwise empty."""
    return tuning.SELECTION if tuning.is_varied(results) else ""


def _heading(results: Results) -> str:
    """The methods that do not differ significantly from the best one; empty if there are several
    models or settings, or one method."""
    if len(results.models) > 1 or tuning.is_varied(results):
        return ""
    ranked, letters = rows(results.ranked()), results.letters(results.models[0])
    if not letters:
        return ""
    of_best = {*letters[ranked[0].arm]}
    best = [row.method for row in ranked if of_best & {*letters[row.arm]}]
    if len(best) == len(ranked):
        return ""
    have = "has" if len(best) == 1 else "have"
    return f"{listed(best)} {have} the highest mRI{results.one_training}"


def _by_set(results: Results, model: str, ri: pandas.DataFrame) -> Table:
    """One row per method, best first, and one column per downstream dataset, as in papers."""
    wide = ri.pivot_table("RI_pts", "method", "downstream", sort=False)
    wide = wide[results.downstreams(model)].add_suffix("_pts").rename_axis(columns=None)
    titled = results.pretrained_rows(model).items()
    above = {name: dict(zip(map(str, wide), of, strict=True)) for name, of in titled}
    wide = results.ranked(model).set_index("method")[MRI].join(wide, how="inner")
    return Table(
        slug("ri", model) if len(results.models) > 1 else "ri",
        "RI in points, by downstream dataset (easiest for the pretrained model first), evaluated "
        f"on {results.measured_on}; mRI with 95% intervals{results.of(model)}"
        f"{results.one_training}.",
        wide.reset_index(),
        [name for name in map(str, wide) if name.endswith("_pts")],
        above=above,
        heads={
            f"{name}_pts": results.head(name)
            for name in results.downstreams(model)
            if UNION in name
        },
    )


def trade_off(results: Results) -> Section | None:
    """Accuracy on the downstream dataset against that on the others; None if a downstream dataset
    is not evaluated."""
    shown = results.shown
    if X not in shown or shown.empty:
        return None
    (_, adapted), (_, best) = extremes(shown, X), extremes(shown, Y)
    heading = (
        f"{best['method']} is most accurate on other datasets, {adapted['method']} on the "
        f"downstream dataset{results.one_training}"
    )
    if tuning.is_varied(results):
        heading = "Accuracy on downstream and other datasets"
    return Section(
        "trade-off",
        heading,
        "Higher is more robust; further right is better adapted. Lines interpolate weights from "
        "the pretrained model (α = 0) to the fine-tuned one (α = 1)." + chosen_on_its_set(results),
        figures=charts.by_model(
            results,
            "trade-off",
            "Mean accuracy on the downstream dataset (x) and on other datasets (y), in percent",
            pandas.concat([_points(results, model) for model in results.models]),
            (Y, "label"),
            lambda rows: charts.scatter(
                rows, X, Y, "name", curve="curve" if rows["curve"].notna().any() else ""
            ),
        ),
        is_open=True,
    )


def _points(results: Results, model: str) -> pandas.DataFrame:
    """The pretrained model, every row of the table, and every step of every curve; `name` is empty
    for steps."""
    before, arms = results.before(model), results.arms
    sets, downstreams = results.grid.sets, results.grid.downstreams
    others = [fmean(before[j] for j in sets if j not in trained_sets(i)) for i in downstreams]
    on_own = [fmean(before[j] for j in trained_sets(i)) for i in downstreams]
    first: dict[str, Any] = {"label": "pretrained", "name": "pretrained"}
    first[X], first[Y] = fmean(on_own), fmean(others)
    arms = arms[arms["model"] == model]
    series = arms.groupby(["key", "variant", "setting"], sort=False)
    is_step = (series["alpha"].transform("count") > 1) & arms["alpha"].notna()
    steps = [f", α = {a:g}" if on else "" for a, on in zip(arms["alpha"], is_step, strict=True)]
    label = arms["method"] + steps
    data = arms[[X, Y, "alpha"]].assign(
        label=label,
        name=label.where(arms["shown"], ""),
        curve=series["method"].transform("first").where(is_step),
    )
    data = data[arms["shown"] | is_step].sort_values("curve", kind="stable", na_position="first")
    return pandas.concat([pandas.DataFrame([first]), data]).assign(model=model)


def chosen_on_its_set(results: Results) -> str:
    """A sentence on methods whose models were chosen on the images of their downstream accuracy;
    empty if there are none."""
    names = dict.fromkeys(
        str(results.record.methods.get(row.method, row.method))
        for row in results.record.rows
        if row.settings.get("method.select") == "greedy"
    )
    if not names:
        return ""
    return (
        f" {', '.join(names)}: chosen by accuracy on held-out images of the downstream dataset, so "
        "its accuracy there is optimistic."
    )
