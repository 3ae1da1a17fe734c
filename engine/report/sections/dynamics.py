"""Accuracy during fine-tuning, and the slides' claim that robustness falls before it saturates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas

from engine.measures import dynamics
from engine.measures.dynamics import Claim, Dynamics
from engine.measures.rows import Arm
from engine.measures.standings import rounded, signed
from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.specs import Spec
from engine.report.tables import Results

LABELS = {"downstream": "set fine-tuned on", "ood": "other sets", "upstream": "upstream set"}
PRE_TRAINED = 0.5  # where step 0 stands on an axis of logarithms
SIDE = 230  # pixels of a panel where there are several


def section(results: Results) -> Section | None:
    record = results.record
    curves = dynamics.dynamics(results.grid, record.sets, record.upstream, record.downstreams)
    if not curves:
        return None
    by_model: dict[str, list[Dynamics]] = {}
    for of_method in curves:
        by_model.setdefault(of_method.arm.model, []).append(of_method)
    titles = {of_method.arm: _title(of_method.arm, record.methods) for of_method in curves}
    claims = [of_method.claim for of_method in curves if of_method.claim is not None]
    return Section(
        "dynamics",
        "Accuracy during fine-tuning",
        "Means over the sets fine-tuned on. Downstream accuracy saturates at the first step with "
        "95% of its total rise. Robustness falls before that where OOD accuracy at an earlier step "
        "is higher, by an interval that holds for all earlier steps together and lies above 0.",
        [_statement(of_method, titles[of_method.arm]) for of_method in curves],
        [_figure(model, of_model, titles, len(by_model)) for model, of_model in by_model.items()],
        [_table(claims, record.methods)] if claims else [],
    )


def _table(claims: Sequence[Claim], methods: Mapping[str, str]) -> Table:
    data = pandas.DataFrame(claims)
    data["method"] = [methods.get(claim.method, claim.method) for claim in claims]
    return Table(
        "dynamics-claims",
        "When robustness peaks and when downstream accuracy saturates, in optimizer steps; fall: "
        "OOD accuracy at the best earlier step less that at saturation, in points.",
        data.drop(columns=["alpha", "setting"]).rename(  # a claim's arm has none
            columns={end: f"fall_{end}" for end in ("low", "high")}
        ),
        {"peak_ood": "plain1", "saturation_ood": "plain1", "fall": "interval"},
    )


def _title(arm: Arm, methods: Mapping[str, str]) -> str:
    title = methods.get(arm.method, arm.method)
    return title if arm.variant in ("", "canonical") else f"{title} ({arm.variant})"


def _statement(curves: Dynamics, title: str) -> str:
    name, claim = f"{title} of {curves.arm.model}", curves.claim
    if claim is None:
        return f"{name}: downstream accuracy does not rise, so that it cannot saturate."
    low, high = (signed(-end) for end in (claim.high, claim.low))
    return (
        f"{name}: OOD accuracy is highest {_at(claim.peak)} ({rounded(claim.peak_ood)}%), "
        f"downstream accuracy reaches 95% of its rise {_at(claim.saturation)}. Robustness falls "
        f"before downstream accuracy saturates: {str(claim.holds).lower()} for this run; its "
        f"highest earlier value is {_at(claim.best)}, from where to saturation OOD accuracy "
        f"changes by {signed(-claim.fall)} points [{low}, {high}]."
    )


def _at(step: int) -> str:
    return f"at step {step}" if step else "before fine-tuning"


def _figure(
    model: str, curves: Sequence[Dynamics], titles: Mapping[Arm, str], models: int
) -> Figure:
    data = pandas.DataFrame(
        {
            "method": titles[of_method.arm],
            "quantity": LABELS[point.quantity],
            "step": point.step,
            "at": point.step or PRE_TRAINED,
            "accuracy": point.value,
            "low": point.low,
            "high": point.high,
        }
        for of_method in curves
        for point in of_method.points
    )
    last = [
        f"{titles[of_method.arm]}: "
        + ", ".join(
            f"{label} {rounded(curve[0].value)}% before and {rounded(curve[-1].value)}% after"
            for quantity, label in LABELS.items()
            if (curve := of_method.curve(quantity))
        )
        for of_method in curves
    ]
    of_model = f" of {model}" if models > 1 else ""
    return Figure(
        frames.slug("dynamics", *[model] * (models > 1)),
        f"Accuracy{of_model} in percent against the optimizer step, on a logarithmic axis; pre: "
        "the pre-trained model. Bands are 95% intervals.",
        f"Mean accuracy{of_model} during fine-tuning. {'; '.join(last)}.",
        data,
        _spec(data),
    )


def _spec(data: pandas.DataFrame) -> Spec:
    x = {
        "field": "at",
        "type": "quantitative",
        "title": "optimizer step",
        "scale": {"type": "log", "nice": False},
        "axis": {
            "values": sorted(set(data["at"])),
            "labelExpr": f"datum.value === {PRE_TRAINED} ? 'pre' : format(datum.value, ',d')",
            "labelOverlap": True,
        },
    }
    y = specs.number("accuracy", "accuracy, %", zero=False, format="~r")
    color = {
        "field": "quantity",
        "type": "nominal",
        "title": None,
        "sort": list(LABELS.values()),
        "legend": {"orient": "bottom", "symbolOpacity": 1},
    }
    tooltip = [specs.field(name) for name in ("method", "quantity", "step")]
    tooltip += [specs.field(name, format=".1f") for name in ("accuracy", "low", "high")]
    view: Spec = {
        "encoding": {"x": x, "color": color, "tooltip": tooltip},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "line", "point": True}, "encoding": {"y": y}},
        ],
    }
    methods = list(dict.fromkeys(data["method"]))
    if len(methods) == 1:
        return view
    facet = {"field": "method", "type": "nominal", "title": None, "sort": methods}
    return {"facet": facet, "columns": 3, "spec": view | {"width": SIDE, "height": SIDE}}
