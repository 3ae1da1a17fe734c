"""Which images fine-tuning gained and lost, with thumbnails where the sets' licences allow them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from engine.measures.image_changes import GAINED, MOST, ImageChange
from engine.report.section import Gallery, Section, Table, Thumbnail
from engine.report.tables import Results


def section(results: Results) -> Section | None:
    classes = results.record.classes
    changes = results.changes if classes else ()
    if not changes:
        return None
    shown = {
        (name, int(image)): base64.b64decode(file)
        for name, files in results.record.thumbnails.items()
        for image, file in files.items()
    }
    table = Table(
        "images",
        f"The images of each set that most models gained and lost, {MOST} of each at most. image: "
        "its place in the set's pack. before: the pre-trained model's answer; after: what most of "
        "the models that lost it answer. models: how many did, of those in a row of a table that "
        "were fine-tuned on other sets; by method: how many of them are of which.",
        pandas.DataFrame([_row(results, change) for change in changes]),
    )
    return Section(
        "images",
        "Which images were gained and lost",
        "An image is gained by a model that is right about it where the pre-trained model was "
        "wrong, and lost the other way round. Shown are those that most models agree on.",
        _without(results, shown),
        tables=[table],
        galleries=_galleries(changes, classes, shown),
    )


def _row(results: Results, change: ImageChange) -> dict[str, Any]:
    classes, methods = results.record.classes, results.record.methods
    return {
        "model": change.model,
        "evaluated_on": change.evaluated_on,
        "change": change.change,
        "image": change.index,
        "class": classes[change.label],
        "before": classes[change.before],
        "after": classes[change.after],
        "models": change.rows,
        "of": change.of,
        "by_method": ", ".join(
            f"{methods.get(key, key)} {count}"
            for key, count in sorted(change.by_method.items(), key=lambda item: (-item[1], item[0]))
        ),
    }


def _without(results: Results, shown: Mapping[tuple[str, int], bytes]) -> list[str]:
    """Sentences on the images that have no thumbnails, with the reason."""
    sets = dict.fromkeys(change.evaluated_on for change in results.changes)
    closed = [name for name in sets if name not in results.record.thumbnails]
    images = {(c.evaluated_on, c.index) for c in results.changes if c.evaluated_on not in closed}
    sentences = []
    if closed:
        sentences.append(
            f"No pictures of {', '.join(closed)}: the data set's recipe does not say that its "
            "licence lets them be shown (`dataset.thumbnails`)."
        )
    if absent := images - shown.keys():
        sentences.append(f"{len(absent)} images of the table have no picture, for want of room.")
    return sentences


def _galleries(
    changes: Sequence[ImageChange],
    classes: Sequence[str],
    shown: Mapping[tuple[str, int], bytes],
) -> list[Gallery]:
    """One of each model, set and change that has thumbnails."""
    several = len({change.model for change in changes}) > 1
    galleries: dict[str, list[Thumbnail]] = {}
    for change in changes:
        if webp := shown.get((change.evaluated_on, change.index)):
            of_model = f"{change.model}, " if several else ""
            caption = f"{of_model}{change.evaluated_on}: {change.change}"
            galleries.setdefault(caption, []).append(Thumbnail(_words(change, classes), webp))
    return [Gallery(caption, pictures) for caption, pictures in galleries.items()]


def _words(change: ImageChange, classes: Sequence[str]) -> str:
    """`dog: cat before, right after; gained by 30 of 72 models`."""
    label, before, after = (classes[k] for k in (change.label, change.before, change.after))
    answers = f"{before} before, right" if change.change == GAINED else f"right before, {after}"
    return f"{label}: {answers} after; {change.change} by {change.rows} of {change.of} models"
