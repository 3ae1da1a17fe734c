"""The sections of the report: numbers that are already worked out, laid out as HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

from engine.measures.bootstrap import Ends
from engine.measures.rows import Arm
from engine.measures.standings import Standings, signed
from engine.report import charts
from engine.report.plot import ticks
from engine.report.table import averaged_over, measured_on

ABSENT = "–"
GLOSSARY = {
    "fine_tune": "Every weight is trained on the downstream set.",
    "linear_probe": "Only the head is trained; the backbone stays as it was.",
    "visual_prompt": "A frame of trained pixels is laid around each image; the network is frozen.",
    "lora": "Low-rank matrices are trained beside the frozen weights, then merged into them.",
    "ewc": "Fine-tuning pulled back to the pre-trained weights, hardest where the Fisher "
    "information says that a weight matters upstream.",
    "lwf": "Fine-tuning that also has to imitate the pre-trained model's outputs.",
    "lp_ft": "A linear probe first, then fine-tuning from there.",
    "wise_ft": "Weights between the pre-trained (α = 0) and the fine-tuned (α = 1) model; "
    "tables show α = 0.5 where they name no other.",
    "soup": "The plain average of the weights of several models fine-tuned in different ways.",
    "greedy_soup": "An average that takes a model in only where held-out downstream images agree.",
}


@dataclass(frozen=True)
class Page:
    """What several sections of one report need to know."""

    upstream: str
    published: Mapping[str, Any] | None
    own: str
    seeds: int = 1


def ranking(one: Standings, page: Page) -> str:
    """Every method by its mRI, best first: bar, interval, and what else it changed."""
    ranked = one.ranked()
    if not ranked:
        return ""
    reference = published_mri(one, page.published)
    ends = [end for line in ranked for end in (line.mri.mri, line.mri.mri_low, line.mri.mri_high)]
    axis = ticks(min(0.0, *ends), max(0.0, *ends), 5)
    head = ["<th>method</th>", f'<th class="chart">{charts.bar_axis(axis)}</th>', "<th>mRI</th>"]
    others = ("95% interval", "own set, %", "other sets, %", f"change on {page.upstream}")
    head += [f'<th class="wide">{escape(name)}</th>' for name in others]
    head += ["<th>published mRI</th>"] * bool(reference)
    rows = []
    for line in ranked:
        row = line.mri
        ends = span(row.mri_low, row.mri_high, row.error)
        interval = row.mri_low, row.mri_high
        name = f"{line.title}: mRI {signed(row.mri)}, {ends}"
        cells = [
            f'<th scope="row">{escape(line.title)}</th>',
            f'<td class="chart">{charts.bar(row.mri, axis, name, interval=interval)}</td>',
            f'<td class="strong">{signed(row.mri)}</td>',
            f'<td class="wide quiet">{ends}</td>',
        ]
        numbers = (
            _number(line.downstream, False),
            _number(line.ood, False),
            _number(line.upstream),
        )
        cells += [f'<td class="wide">{number}</td>' for number in numbers]
        cells += [f"<td>{_number(reference.get(line.arm.method))}</td>"] * bool(reference)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return section(
        "Mean robustness improvement",
        "Mean change in accuracy, in points, on the sets a model was not fine-tuned on"
        + ("" if one.is_square else f", over {averaged_over(one)}")
        + ". Bars start "
        "at the pre-trained model; the line across a bar's end is its 95% interval.",
        table(head, rows),
    )


def models(found: Sequence[Standings], page: Page) -> str:
    """Methods x pre-trained models: mRI, and the published one in brackets where there is one."""
    end = charts.scale_end(line.mri.mri for one in found for line in one.lines)
    titles = dict.fromkeys(line.title for one in found for line in one.lines)
    head = ["<th>method</th>", *(f"<th>{_breakable(one.model)}</th>" for one in found)]
    brackets = any(published_mri(one, page.published) for one in found)
    rows = []
    for title in titles:
        cells = [f'<th scope="row">{escape(title)}</th>']
        for one in found:
            line = next((line for line in one.lines if line.title == title), None)
            known = published_mri(one, page.published)
            note = signed(known[line.arm.method]) if line and line.arm.method in known else ""
            cells.append(_tinted(line.mri.mri if line else None, end, note))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return section(
        "Mean robustness improvement by pre-trained model",
        "mRI in points"
        + ("" if found[0].is_square else f", over {averaged_over(found[0])}")
        + ("; in brackets the published number." if brackets else "."),
        table(head, rows, kind="even"),
    )


def improvements(one: Standings, page: Page) -> str:
    """Methods x sets: RI, tinted, under the accuracy before fine-tuning."""
    end = charts.scale_end(value for line in one.lines for value in line.ri.values())
    head = ["<th>fine-tuned on</th>", *(f"<th>{_breakable(name)}</th>" for name in one.downstreams)]
    before = _plain_row("accuracy before, %", [one.before[name] for name in one.downstreams])
    known = reference_of(one, page.published).get("before", {})
    if any(name in known for name in one.downstreams):
        before += _plain_row("published, %", [known.get(name) for name in one.downstreams])
    rows = []
    for line in one.lines:
        cells = "".join(_tinted(line.ri.get(name), end) for name in one.downstreams)
        rows.append(f'<tr><th scope="row">{escape(line.title)}</th>{cells}</tr>')
    return section(
        "Robustness improvement, set by set",
        "RI in points: fine-tuned on the set that heads the column, evaluated on all the others. "
        "Sets stand from the easiest to the hardest for the pre-trained model.",
        table(head, rows, before, kind="even"),
    )


def maps(one: Standings, page: Page) -> str:
    """A heat map a method, all on one colour scale."""
    columns = [*one.sets, page.upstream]
    end = charts.scale_end(
        value - one.before[name]
        for line in one.lines
        for downstream, cells in line.after.items()
        for name, value in cells.items()
        if name != downstream and name in columns and downstream in one.downstreams
    )
    figures = "".join(
        f"<figure><h3>{escape(line.title)}<span>"
        f"mRI {signed(line.mri.mri)}</span></h3>"
        f"{charts.heat_map(one, line, page.upstream, end)}</figure>"
        for line in one.lines
    )
    return section(
        "Where it helps and where it hurts",
        "Rows: the set fine-tuned on. Columns: the set evaluated on, the upstream set apart at the "
        "right. Change in accuracy against the pre-trained model, in points.",
        f'{charts.legend(end, page.own)}<div class="maps">{figures}</div>',
    )


def trade_off(one: Standings) -> str:
    """The plane of accuracy on the own set and on the others, with the curves of alpha."""
    if not one.lines:
        return ""
    return section(
        "What adapting costs elsewhere",
        "Up is more robust, right is better adapted."
        + " The curve interpolates weights from the pre-trained model (α = 0) to the fine-tuned "
        "one (α = 1), a dot a step of α." * bool(one.curves),
        charts.trade_off(one),
    )


def upstream_change(one: Standings, page: Page, intervals: Mapping[Arm, Ends]) -> str:
    """Change on the upstream set per method: its mean, and a dot for each set fine-tuned on.

    intervals: ends of those of the means that are known.
    """
    name = page.upstream
    rows = [
        (
            line,
            line.upstream,
            {i: line.after[i][name] - one.before[name] for i in one.downstreams if i != name},
        )
        for line in one.lines
        if line.upstream is not None
    ]
    if not rows:
        return ""
    shown = [change for _, _, changes in rows for change in changes.values()]
    shown += [end for line, _, _ in rows for end in intervals.get(line.arm, ())[:2]]
    axis = ticks(min(0.0, *shown), max(0.0, *shown), 4)
    body = []
    for line, mean, changes in rows:
        told, ends = f"{line.title}: {signed(mean)}", intervals.get(line.arm)
        interval, text = ((ends.low, ends.high), span(*ends)) if ends else (None, ABSENT)
        body.append(
            f'<tr><th scope="row">{escape(line.title)}</th><td class="chart">'
            f"{charts.bar(mean, axis, told, interval=interval, dots=changes)}</td>"
            f'<td class="strong">{signed(mean)}</td><td class="quiet">{text}</td></tr>'
        )
    head = ["<th>method</th>", f'<th class="chart">{charts.bar_axis(axis)}</th>']
    head += ["<th>mean</th>", "<th>95% interval</th>"]
    return section(
        "What is forgotten upstream",
        f"Change in accuracy on {name}, in points, from {one.before[name]:.1f}% before: a dot for "
        "each set fine-tuned on, a bar to their mean, a line across its end for the mean's 95% "
        "interval. No part of RI.",
        table(head, body),
    )


def sheet(png: bytes | None) -> str:
    """The contact sheet of the sets, inlined."""
    if png is None:
        return ""
    return section(
        "What the sets look like",
        "Samples of every set, drawn for this page; the models see the same drawings, smaller.",
        '<img alt="Contact sheet: sample images of every set" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">',
    )


def how_to_read(found: Sequence[Standings], page: Page) -> str:
    """What the numbers mean, and what they cannot say."""
    texts = [
        f"RI of a method on one set is the mean, over {measured_on(found[0])}, of accuracy after "
        "fine-tuning minus accuracy before; mRI is the mean of RI over "
        f"{averaged_over(found[0])}. " + _identity(found),
        "A positive mRI means that learning one set carried over to the others; a negative one "
        "means that it damaged what the pre-trained model could do. The set fine-tuned on and the "
        f"{page.upstream} set are shown, but are no part of RI.",
    ]
    texts.append(
        "Intervals hold the middle 95% of bootstrap resamples of the source images. Copies of one "
        "source in several sets are drawn together, and every model is measured against the "
        "pre-trained one on the same draw. "
        + (
            f"They cover training seeds too, {page.seeds} of them."
            if page.seeds > 1
            else "The intervals are about the choice of images; another training seed is not in "
            "them, so take a difference of a point or two between methods as unproven until "
            "several seeds agree."
        )
    )
    if page.published and any(reference_of(one, page.published) for one in found):
        texts.append(f"Published numbers: {page.published['source']}.")
    content = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return f"<section><h2>How to read this</h2>{content}</section>"


def _identity(found: Sequence[Standings]) -> str:
    """What mRI says of accuracy. It holds where each set is left out once."""
    if not found[0].is_square:
        return "The sets that are only evaluated count in RI of every column."
    before = (
        f"{fmean(one.before[name] for name in one.sets):.1f}%"
        + f" ({one.model})" * (len(found) > 1)
        for one in found
    )
    return (
        "Mean accuracy on the other sets is therefore mRI plus the mean accuracy before: "
        f"{', '.join(before)}."
    )


def glossary(found: Sequence[Standings]) -> str:
    """The canonical methods that were run, a sentence each."""
    lines = [line for one in found for line in one.lines if line.arm.variant != "paper"]
    known = {line.title: GLOSSARY[line.arm.method] for line in lines if line.arm.method in GLOSSARY}
    return f"<section><h2>The methods</h2>{_definitions(known)}</section>" if known else ""


def settings(values: Mapping[str, object]) -> str:
    """What it takes to get these numbers again."""
    return f"<section><h2>Settings</h2>{_definitions(values)}</section>" if values else ""


def credits(rows: Sequence[Mapping[str, str]]) -> str:
    """Whose artwork and weights these are, and under which licences."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [f"<th>{escape(name)}</th>" for name in names]
    cells = [[f"<td>{_linked(row.get(name, ABSENT))}</td>" for name in names] for row in rows]
    body = table(head, [f"<tr>{''.join(row)}</tr>" for row in cells], kind="text")
    return f"<section><h2>Credits</h2>{body}</section>"


def reference_of(one: Standings, published: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The published numbers of this pre-trained model, found by label or timm name; or nothing."""
    models = (published or {}).get("models", {})
    by_timm = {entry.get("timm"): entry for entry in models.values() if entry.get("timm")}
    return models.get(one.model) or by_timm.get(one.model) or {}


def published_mri(one: Standings, published: Mapping[str, Any] | None) -> Mapping[str, float]:
    """The published mRI by method. Nothing where ours is the mean over other columns: the published
    ones are over `downstreams` sets, which are also those of RI."""
    if not one.is_square or len(one.sets) != (published or {}).get("downstreams"):
        return {}
    return reference_of(one, published).get("mri", {})


def _tinted(value: float | None, end: float, note: str = "") -> str:
    style = ""
    if value is not None:
        kind, opacity = charts.tint(value, end)
        style = f' style="background:rgb(var(--{kind}-fill)/{opacity})"'
    note = f' <span class="quiet">({note})</span>' if note else ""
    return f'<td class="tinted"{style}>{_number(value)}{note}</td>'


def span(low: float, high: float, error: float, digits: int = 1) -> str:
    """An interval in words; error: the Monte-Carlo standard error of its ends."""
    return f"{signed(low, digits, error)} to {signed(high, digits, error)}"


def section(heading: str, caption: str, content: str) -> str:
    """A heading, a line on how to read it, and what it shows (HTML)."""
    return (
        f"<section><h2>{escape(heading)}</h2>"
        f'<p class="caption">{escape(caption)}</p>{content}</section>'
    )


def table(head: Iterable[str], rows: Iterable[str], before: str = "", kind: str = "") -> str:
    """Cells and rows (HTML) as a table that scrolls where the page is narrow."""
    body = f'<tbody class="before">{before}</tbody>' if before else ""
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{"".join(head)}</tr></thead>{body}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: float | None, sign: bool = True) -> str:
    return ABSENT if value is None else signed(value) if sign else f"{value:.1f}"


def _plain_row(name: str, values: Sequence[float | None]) -> str:
    cells = "".join(f"<td>{_number(value, sign=False)}</td>" for value in values)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _definitions(values: Mapping[str, object]) -> str:
    items = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _breakable(name: str) -> str:
    return escape(name).replace("-", "-<wbr>").replace("_", "_<wbr>")


def _linked(text: str) -> str:
    safe = escape(text)
    return f'<a href="{safe}">{safe}</a>' if text.startswith("https://") else safe
