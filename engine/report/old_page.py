"""The report of a campaign: one HTML file that answers first, then shows why, then how.

It opens anywhere, offline and in years: no script, no network, pictures inlined. Every number in
it comes from the rows of `accuracy.csv` and `mri.csv`, which lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from engine.machine import files
from engine.measures.standings import Standings, counted, signed
from engine.report import certainty, forgetting
from engine.report import old_sections as sections

if TYPE_CHECKING:
    from engine.measures.distances import Matrix
    from engine.report.certainty import Certainty

TEMPLATE = Path(__file__).with_name("old_page.html")
FINE_TUNE = "fine_tune"
FILES = ("accuracy.csv", "mri.csv")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PNG = b"\x89PNG\r\n\x1a\n"


def write(
    folder: Path,
    *,
    title: str,
    models: Sequence[Standings],
    upstream: str,
    settings: Mapping[str, object],
    credits: Sequence[Mapping[str, str]] = (),
    contact_sheet: bytes | None = None,
    published: Mapping[str, Any] | None = None,
    holdout: bool = True,
    notes: Sequence[str] = (),
    distances: Matrix | None = None,
    sure: Certainty | None = None,
) -> Path:
    """Write `index.html` into `folder`, atomically, and return its path.

    `settings` and each of `credits` are shown as
    they come (name: value); `contact_sheet` is a PNG; `published` has the layout of
    `recipes/published.yaml` and shows where one of its models, by label or timm name, is ours;
    `holdout` says whether accuracy on the downstream set is on images kept from training; `notes`
    stand at the top; `distances` are those of the one model's features, and
    `sure` says which methods can be told apart. Raises ValueError if the sheet is no PNG.
    """
    if contact_sheet is not None and not contact_sheet.startswith(PNG):
        raise ValueError("contact_sheet must be the bytes of a PNG file")
    if not models:
        raise ValueError("there is nothing to report: no pre-trained model has been evaluated")
    own = "accuracy on its own hold-out, %" if holdout else "training accuracy (no hold-out), %"
    page = sections.Page(upstream, published, own, sure.seeds if sure else 1)
    forgotten = sure.forgotten(upstream) if sure else {}
    parts = [_header(title, models, page, notes, sure)]
    if len(models) > 1:
        parts.append(sections.models(models, page))
    for one in models:
        if len(models) > 1:
            parts.append(f'<h2 class="model">{escape(one.model)}</h2>')
            parts.append(f"<p>{escape(finding(one))}</p>")
        parts += [
            sections.ranking(one, page),
            certainty.section(one, sure) if sure else "",
            sections.improvements(one, page),
            sections.maps(one, page),
            _side_by_side(sections.trade_off(one), sections.upstream_change(one, page, forgotten)),
        ]
    if distances is not None and len(models) == 1:
        parts.append(forgetting.section(models[0], distances, upstream))
    parts += [
        sections.sheet(contact_sheet),
        _side_by_side(sections.how_to_read(models, page), sections.glossary(models)),
        sections.settings(settings),
        sections.credits(credits),
        _footer(
            [
                *FILES,
                *certainty.FILES * bool(sure),
                *["distances.csv", "distances_pairs.csv"] * (distances is not None),
            ]
        ),
    ]
    return page_of(folder / "index.html", title, parts)


def page_of(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write parts (HTML) as one page in the report's style, atomically, and return its path."""
    html = Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(title), body="\n".join(filter(None, parts))
    )
    files.write_atomic(path, html.encode())
    return path


def finding(one: Standings) -> str:
    """The result in one sentence: the best method, its mRI and interval, and plain fine-tuning."""
    ranked = one.ranked()
    n = len(one.sets)
    if not ranked:
        every = f"all {words(n)}" if n > 2 else "both"
        return f"No method has been fine-tuned on {every} sets yet."
    line = ranked[0]
    best = line.mri
    ends = sections.span(best.mri_low, best.mri_high, best.error)
    verb = "gains most" if best.mri > 0 else "loses least"
    text = (
        f"{line.title} {verb} on the {counted('set', n - 1, words(n - 1))} a model was not "
        f"fine-tuned on: {signed(best.mri)} points (95% interval {ends})"
    )
    plain = next((row for row in ranked if row.arm.method == FINE_TUNE), None)
    if plain is line and len(ranked) > 1:
        return f"{text}, ahead of {ranked[1].title} at {signed(ranked[1].mri.mri)}."
    if plain is None or plain is line:
        return f"{text}."
    return f"{text}, against {signed(plain.mri.mri)} for plain fine-tuning."


def words(number: int) -> str:
    """Small numbers as prose writes them."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def _footer(files: Iterable[str]) -> str:
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    return f"<footer>The numbers behind this page: {links}.</footer>"


def _side_by_side(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>'


def _header(
    title: str,
    found: Sequence[Standings],
    page: sections.Page,
    notes: Sequence[str],
    sure: Certainty | None,
) -> str:
    one = found[0]
    n, k = len(one.sets), len({line.arm.method for line in one.lines})
    many = len(found) > 1
    model = f"one of {words(len(found))}" if many else one.model
    start = f"{counted('method', k, words(k).capitalize())} start{'s' * (k == 1)}"
    others = f" {words(n - 1)}" * (n > 2)
    lead = (
        f"{start} from the same pre-trained model ({model}). Each fine-tunes it on one of "
        f"{words(n)} sets and is evaluated on the other{others}; this is repeated for every set."
    )
    ranked = one.ranked()
    told = [
        f"{line.title}\u00a0{signed(line.upstream)}"
        for line in ranked[:1] + [line for line in ranked[1:] if line.arm.method == FINE_TUNE]
        if line.upstream is not None
    ]
    if told and not many:
        lead += f" Change on the {page.upstream} set, in points: {', '.join(told)}."
    if sure and not many:
        lead = f"{certainty.not_told_apart(one, sure)} {lead}"
    return (
        "<header>"
        + ("" if many else f'<p class="kicker">{escape(title)}</p>')
        + f"<h1>{escape(title if many else finding(one))}</h1>"
        f'<p class="lead">{escape(lead)}</p>'
        + "".join(f'<p class="note">Incomplete: {escape(note)}.</p>' for note in notes)
        + "</header>"
    )
