"""mRI by learning rate."""

from __future__ import annotations

import pandas

from engine.measures.tables import extremes, rows
from engine.report import charts, tuning
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Section, Table
from engine.report.sections.curves import points
from engine.report.sections.figures import by_model
from engine.report.text import counted, listed, signed

RATE = "optimizer.lr"
MRI, HELD_OUT, CHOSEN = "mRI_pts", "on_downstream_set_pct", "chosen"
NUMBERS = [MRI, "mRI_low", "mRI_high", HELD_OUT]


def section(results: Results) -> Section | None:
    """Every method by learning rate; None if the campaign does not vary it."""
    found = points(results, RATE)
    if found["value"].nunique() < 2:
        return None
    found = found.assign(**{CHOSEN: _chosen(results, found)})
    numbers = [name for name in NUMBERS if name in found]
    data = found.rename(columns={"value": "rate"})[["model", "method", "rate", *numbers, CHOSEN]]
    ticks = {rate: f"{rate:g}" for rate in sorted(set(data["rate"]))}
    is_marked = data[CHOSEN].any()
    marked = " (ring: highest accuracy on held-out images)" * bool(is_marked)
    return Section(
        "rates",
        "; ".join(filter(None, (_of_fine_tuning(results, m, found) for m in results.models)))
        or "mRI by learning rate",
        "\n".join(
            [
                "A method's marked rate has the highest mean accuracy on held-out images of the "
                "downstream datasets. The section on tuning chooses a rate per dataset."
                if is_marked
                else "No images are held out, so no rate is marked.",
                *filter(None, (_leaders(results, model, found) for model in results.models)),
                tuning.SELECTION,
            ]
        ),
        figures=by_model(
            results,
            "rates",
            f"mRI by learning rate, with 95% intervals{marked}",
            data.assign(at=data["rate"].map("{:g}".format)),
            (MRI, "method", "at"),
            lambda shown: charts.curve(
                shown, "rate", MRI, "method", x_title="learning rate", ticks=ticks, mark=CHOSEN
            ),
        ),
        tables=[
            Table(
                "rates",
                "mRI in points and accuracy on the downstream datasets in percent, by rate.",
                data,
            )
        ],
    )


def _chosen(results: Results, found: pandas.DataFrame) -> pandas.Series:
    """`held out` at each method's setting with the highest held-out accuracy, otherwise empty."""
    text = pandas.Series("", found.index)
    if results.record.holdout and HELD_OUT in found:
        known = found.dropna(subset=HELD_OUT)
        text[known.groupby(["model", "key", "variant"])[HELD_OUT].idxmax()] = "held out"
    return text


def _of_fine_tuning(results: Results, model: str, found: pandas.DataFrame) -> str:
    """How the rate affects fine-tuning, in a sentence; empty without fine-tuning."""
    tuned = found[(found["model"] == model) & (found["key"] == FINE_TUNE)].dropna(subset=MRI)
    if tuned.empty:
        return ""
    least, most = extremes(tuned, MRI)
    text = (
        f"Fine-tuning's mRI{results.of(model)} ranges from {signed(least[MRI])} to "
        f"{signed(most[MRI])} points over {counted('setting', len(tuned))}"
    )
    for row in rows(tuned[tuned[CHOSEN] != ""]):
        setting = results.setting(row.arm).short
        text += f", {signed(row.mRI_pts)} with the setting chosen on held-out images ({setting})"
    return text


def _leaders(results: Results, model: str, found: pandas.DataFrame) -> str:
    """In how many settings each method has the highest mRI; empty for a single method."""
    of_model = found[found["model"] == model].dropna(subset=MRI)
    if of_model["key"].nunique() < 2 or of_model.empty:
        return ""
    first = of_model.loc[of_model.groupby("setting")[MRI].idxmax(), "key"].value_counts()
    names = [f"{results.record.methods.get(str(k), k)} in {n}" for k, n in first.items()]
    settings = counted("setting", of_model["setting"].nunique())
    return f"Highest mRI in {settings}{results.of(model)}: {listed(names)}."
