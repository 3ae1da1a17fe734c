"""How far fine-tuning moved the features of each block, and whether that goes with accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas

from engine.measures import correlation
from engine.measures.correlation import Correlation
from engine.measures.rows import Arm
from engine.measures.standings import Standings
from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.specs import Spec
from engine.report.tables import Results

DEPTH = [specs.field("method"), specs.field("block"), specs.field("cka", "CKA", ".4f")]
CELL = [
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("evaluated_on", "on"),
    specs.field("cka", "mean CKA", ".4f"),
    specs.field("change", "change in accuracy, points", "+.2f"),
]


def section(results: Results) -> Section | None:
    blocks = _blocks(results)
    if blocks.empty:
        return None
    cells = _cells(results, blocks)
    models = [model for model in results.models if model.model in set(blocks["model"])]
    relations = _relations(results, models, cells)
    return Section(
        "cka",
        "How far the features moved",
        "Linear centred kernel alignment (CKA, Kornblith et al. 2019) of each block's output "
        "before and after fine-tuning, over the same images: 1 where the features are the same "
        "but for a rotation and a scale. It is estimated without bias from minibatches (Nguyen et "
        "al. 2021), with an image's features at all positions as one vector. Only sets that a "
        "model was not fine-tuned on count.",
        _statements(results, models, relations),
        [_by_depth(results, model, blocks) for model in models]
        + [_scatter(results, model, cells, relations) for model in models],
        [
            Table(
                "cka-accuracy",
                "Spearman's correlation, over the fine-tuned models, of mean CKA with the change "
                "in accuracy on a set; p by permutation of the fine-tuned models; 95% intervals by "
                "bootstrap over them, where there are ten or more.",
                relations.drop(columns="text"),
                dict.fromkeys(("spearman", "low", "high"), "signed2") | {"p": "p"},
            ),
            Table("cka", "CKA of each block, a mean over training seeds.", blocks),
        ],
    )


def _blocks(results: Results) -> pandas.DataFrame:
    """A row a model, method, set fine-tuned on, set evaluated on and block."""
    titles = {line.arm: (model, line) for model, line in results.lines}
    rows = []
    for row in results.record.cka or ():
        arm = Arm(*(row[name] for name in Arm._fields))
        if arm not in titles:
            continue
        names = frames.of_line(*titles[arm]) | {
            "downstream": row["downstream"],
            "evaluated_on": row["evaluated_on"],
        }
        depth = len(row["blocks"])
        for number, (block, value) in enumerate(row["blocks"].items(), start=1):
            rows.append(names | {"block": block, "depth": number / depth, "cka": value})
    if not rows:
        return pandas.DataFrame()
    data = pandas.DataFrame(rows).astype({"cka": float})
    return _mean(data, [name for name in data.columns if name != "cka"])


def _mean(data: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """The mean CKA of each group; unknown where one of its numbers is."""
    groups = data.groupby(keys, sort=False)["cka"]
    return groups.agg(lambda values: values.mean(skipna=False)).reset_index()


def _cells(results: Results, blocks: pandas.DataFrame) -> pandas.DataFrame:
    """A row a fine-tuned model and a set that it was not trained on: the mean of CKA over blocks,
    and the change in accuracy in points."""
    changes = frames.cells(results)
    keys = ["model", "method", "variant", "downstream", "evaluated_on"]
    means = _mean(blocks, keys)
    cells = means.merge(changes[[*keys, "change"]], on=keys, validate="one_to_one")
    return cells[cells["downstream"] != cells["evaluated_on"]].reset_index(drop=True)


def _relations(
    results: Results, models: list[Standings], cells: pandas.DataFrame
) -> pandas.DataFrame:
    """A row a pre-trained model and set, the last over all sets together."""
    rows = []
    for model in models:
        of_model = cells[cells["model"] == model.model]
        places = [*frames.in_order(model, model.before)]
        for name, part in [
            *((name, of_model[of_model["evaluated_on"] == name]) for name in places),
            ("all sets", of_model),
        ]:
            related = _spearman(part)
            rows.append(
                {"model": model.model, "evaluated_on": name, "fine_tuned_models": related.units}
                | {"spearman": related.value, "p": related.p}
                | {"low": related.low, "high": related.high, "text": str(related)}
            )
    return pandas.DataFrame(rows)


def _spearman(cells: pandas.DataFrame) -> Correlation:
    """The coefficient over the fine-tuned models that have all sets."""
    keys = ["model", "method", "variant", "downstream"]
    units = [part[["cka", "change"]].to_numpy() for _, part in cells.groupby(keys, sort=False)]
    most = max(map(len, units), default=0)
    whole = [values for values in units if len(values) == most and not np.isnan(values).any()]
    x, y = np.stack(whole).transpose(2, 0, 1) if whole else np.zeros((2, 0, 0))
    return correlation.spearman(x, y)


def _statements(
    results: Results, models: list[Standings], relations: pandas.DataFrame
) -> list[str]:
    """Whether features that moved less go with more accuracy, over all sets."""
    overall = relations[relations["evaluated_on"] == "all sets"].set_index("model")
    return [
        f"{_relation(overall.loc[model.model])}{frames.label(results, model)}." for model in models
    ]


def _relation(row: Any) -> str:
    count = f"over {row['fine_tuned_models']} fine-tuned models"
    if math.isnan(row["spearman"]):
        return f"Mean CKA or the change in accuracy does not vary {count}: no correlation"
    return f"Mean CKA and change in accuracy: Spearman {row['text']}, {count}"


def _by_depth(results: Results, model: Standings, blocks: pandas.DataFrame) -> Figure:
    of_model = blocks[blocks["model"] == model.model]
    elsewhere = of_model[of_model["downstream"] != of_model["evaluated_on"]]
    keys = ["method", "block", "depth"]
    data = _mean(elsewhere, keys)
    last = data[data["depth"] == 1].set_index("method")["cka"]
    return Figure(
        frames.slug("cka-depth", model.model),
        "CKA before against after fine-tuning, by depth (1: the last block)"
        f"{frames.label(results, model)}; means over the sets that a model was not fine-tuned on.",
        "CKA of the last block: "
        f"{', '.join(f'{method} {value:.2f}' for method, value in last.items())}.",
        data,
        _depth_spec(),
    )


def _scatter(
    results: Results, model: Standings, cells: pandas.DataFrame, relations: pandas.DataFrame
) -> Figure:
    overall = relations[relations["evaluated_on"] == "all sets"].set_index("model")
    return Figure(
        frames.slug("cka-accuracy", model.model),
        "Mean CKA over the blocks against the change in accuracy"
        f"{frames.label(results, model)}; a dot a fine-tuned model and a set that it was not "
        "fine-tuned on.",
        f"{_relation(overall.loc[model.model])}.",
        cells[cells["model"] == model.model],
        _scatter_spec(),
    )


def _group() -> Spec:
    """A channel of the methods: colour and shape, as there are more of them than colours."""
    legend = {"orient": "bottom", "columns": 4, "title": None, "symbolOpacity": 1}
    return {"field": "method", "type": "nominal", "sort": None, "legend": legend}


def _depth_spec() -> Spec:
    return {
        "height": 300,
        "mark": {"type": "line", "point": {"size": 22}, "strokeWidth": 1.8},
        "encoding": {
            "x": specs.number("depth", "depth", format=".1f"),
            "y": specs.number("cka", "CKA", zero=False, format="~r"),
            "color": _group(),
            "tooltip": DEPTH,
        },
    }


def _scatter_spec() -> Spec:
    return {
        "height": 320,
        "mark": {"type": "point", "size": 34, "opacity": 0.8},
        "encoding": {
            "x": specs.number("cka", "mean CKA of the blocks", zero=False, format="~r"),
            "y": specs.number("change", "change in accuracy, points"),
            "color": _group(),
            "shape": _group(),
            "tooltip": CELL,
        },
    }
