"""Charts of the report as inline SVG: no script, no font, no picture file, light or dark.

Colours come from the page's style sheet through classes, so one drawing serves both modes and the
printer. Marks whose number is not printed beside them carry it in a `<title>`; all text is
escaped. Strength of colour is opacity over the page's own background, linear in the value: blue is
gain, orange loss, a pair that colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean

from engine.measures.standings import Line, Standings, signed
from engine.report.plot import Plot, Spot

CELL = 27
LABELS = 106
HEADS = 84
FULL = 0.85  # opacity at the end of a scale; ink on it keeps a contrast above 4.5


def scale_end(values: Iterable[float]) -> float:
    """End of a symmetric colour scale: the largest absolute value, rounded up to fives."""
    return max(1, math.ceil(max(map(abs, values), default=0.0) / 5)) * 5.0


def tint(value: float, end: float) -> tuple[str, float]:
    """Class (`gain` or `loss`) and opacity of a change, on a scale from -end to end."""
    return "gain" if value >= 0 else "loss", round(FULL * min(1.0, abs(value) / end), 3)


def bar(
    value: float,
    axis: Sequence[float],
    title: str,
    *,
    interval: tuple[float, float] | None = None,
    dots: Mapping[str, float] | None = None,
) -> str:
    """A bar from zero over the grid of `axis` (its ticks), as wide as the table cell it is in.

    `interval` adds a whisker, `dots` a dot for each named value.
    """
    at = {tick: _percent(tick, axis) for tick in axis}
    zero, tip = _percent(0, axis), _percent(value, axis)
    parts = [
        f'<line class="{"zero" if tick == 0 else "grid"}" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>'
        for tick, x in at.items()
    ]
    soft = " soft" if dots else ""
    parts.append(
        f'<rect class="{tint(value, 1)[0]}{soft}" x="{min(zero, tip)}%" y="10" '
        f'width="{abs(tip - zero):.3f}%" height="14"/>'
    )
    if interval and interval[1] > interval[0]:
        low, high = (_percent(end, axis) for end in interval)
        parts.append(f'<line class="whisker" x1="{low}%" x2="{high}%" y1="17" y2="17"/>')
    parts += [
        f'<circle class="{tint(change, 1)[0]}" cx="{_percent(change, axis)}%" cy="17" r="3">'
        f"<title>{escape(name)}: {signed(change)}</title></circle>"
        for name, change in (dots or {}).items()
    ]
    return _svg("bar", title, parts)


def bar_axis(axis: Sequence[float]) -> str:
    """The tick labels that stand over a column of bars."""
    digits = max(0, -math.floor(math.log10(axis[1] - axis[0]) + 1e-9))
    texts = [
        f'<text x="{_percent(tick, axis)}%" y="12" text-anchor="middle">'
        f"{signed(tick, digits)}</text>"
        for tick in axis
    ]
    return f'<svg class="bar axis" aria-hidden="true">{"".join(texts)}</svg>'


def legend(end: float, own: str) -> str:
    """Key of the heat maps: the scale from -end to end, and what the outlined cells hold."""
    parts = []
    for k in range(9):
        value = end * (k - 4) / 4
        kind, opacity = tint(value, end)
        text = signed(value, int(end % 2 > 0)) if k % 2 == 0 else ""
        parts.append(
            f'<rect class="{kind}" fill-opacity="{opacity}" x="{k * 32}" y="1" width="32" '
            f'height="14"/><text x="{k * 32 + 16}" y="29" text-anchor="middle">{text}</text>'
        )
    parts.append('<rect class="frame" x="0.5" y="0.5" width="287" height="15"/>')
    parts.append('<rect class="own" x="318.5" y="1.5" width="24" height="13"/>')
    parts.append(f'<text x="350" y="12.5">{escape(own)}</text>')
    return _svg("legend", "colour scale", parts, 560, 33)


def heat_map(one: Standings, line: Line, upstream: str, end: float) -> str:
    """Fine-tuned on (rows) x evaluated on (columns): change in points against the pre-trained
    model. The outlined diagonal holds accuracy in percent on the set that was fine-tuned on."""
    columns = [*one.sets, *([upstream] if upstream in one.before else [])]
    left = [LABELS + j * CELL + (8 if name == upstream else 0) for j, name in enumerate(columns)]
    parts = [
        f'<text transform="translate({x + CELL / 2 + 2},{HEADS - 6}) rotate(-50)">'
        f"{escape(name)}</text>"
        for x, name in zip(left, columns, strict=True)
    ]
    for i, downstream in enumerate(one.downstreams):
        y = HEADS + i * CELL
        parts.append(
            f'<text x="{LABELS - 7}" y="{y + CELL / 2 + 4}" text-anchor="end">'
            f"{escape(downstream)}</text>"
        )
        cells = line.after.get(downstream, {})
        for x, name in zip(left, columns, strict=True):
            if name in cells:
                parts.append(_cell(x, y, (downstream, name), cells[name], one.before[name], end))
    size = left[-1] + CELL + 14, HEADS + len(one.downstreams) * CELL + 2
    return _svg("heat", f"{line.title}: change per pair of sets", parts, *size)


def trade_off(one: Standings) -> str:
    """Mean accuracy on the set fine-tuned on (x) against that on the others (y), in percent.

    Interpolations are curves with a mark an alpha; other methods are named points. The curve of
    WiSE-FT runs from the pre-trained model to plain fine-tuning.
    """
    before = fmean(one.before[name] for name in one.sets)
    start = (before, before)
    named = {line.arm for line in one.lines}
    on_curves = {line.arm for curve in one.curves for line in curve}
    methods = [line for line in one.lines if line.arm not in on_curves]
    plot = Plot([start, *map(_spot, methods)], [list(map(_spot, curve)) for curve in one.curves])
    parts = [
        plot.frame(
            "mean accuracy on the set fine-tuned on, %", "mean accuracy on the other sets, %"
        )
    ]
    labels = [(start, "pre-trained" + ", α = 0" * bool(one.curves))]
    for curve in one.curves:
        path = " ".join("{:.1f},{:.1f}".format(*plot.at(_spot(line))) for line in curve)
        parts.append(f'<polyline class="curve" points="{path}"/>')
        for line in curve:
            name = f"{line.title}, α = {line.arm.alpha:g}"
            radius = 5 if line.arm in named else 3
            parts.append(plot.dot(_spot(line), "on-curve", radius, _told(name, _spot(line))))
            if line.arm in named:
                labels.append((_spot(line), name))
    parts.append(plot.dot(start, "start", 5, _told("pre-trained", start)))
    for line in methods:
        parts.append(plot.dot(_spot(line), "method", 4, _told(line.title, _spot(line))))
        last = one.curves and line.arm.method == "fine_tune"
        labels.append((_spot(line), line.title + ", α = 1" * bool(last)))
    parts += [plot.name(spot, text) for spot, text in labels]
    return _svg("plot", "accuracy on the own set against the others", parts, plot.WIDE, plot.HIGH)


def _spot(line: Line) -> Spot:
    return line.downstream, line.ood


def _told(name: str, spot: Spot) -> str:
    return f"{name}: {spot[0]:.1f} on its own set, {spot[1]:.1f} on the others"


def _cell(
    x: float, y: float, pair: tuple[str, str], after: float, before: float, end: float
) -> str:
    downstream, name = pair
    title = (
        f"fine-tuned on {downstream}, evaluated on {name}: {after:.1f}%, "
        f"{signed(after - before)} against the pre-trained {before:.1f}%"
    )
    own = downstream == name
    kind, opacity = tint(after - before, end)
    look = 'class="own"' if own else f'class="{kind}" fill-opacity="{opacity}"'
    inset, size = (1.5, CELL - 3) if own else (0.5, CELL - 1)
    text = f"{after:.0f}" if own else signed(after - before, 0)
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect {look} x="{x + inset}" y="{y + inset}" width="{size}" height="{size}"/>'
        f'<text class="{"number own" if own else "number"}" x="{x + CELL / 2}" '
        f'y="{y + CELL / 2 + 3.5}" text-anchor="middle">{text}</text></g>'
    )


def _percent(value: float, axis: Sequence[float]) -> float:
    """Place of a value on an axis in percent, with room at both ends for a label."""
    return round(4 + 92 * (value - axis[0]) / (axis[-1] - axis[0]), 3)


def _svg(kind: str, title: str, parts: Iterable[str], wide: float = 0, high: float = 0) -> str:
    box = f' viewBox="0 0 {wide:g} {high:g}"' if wide else ""
    return (
        f'<svg class="{kind}"{box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
