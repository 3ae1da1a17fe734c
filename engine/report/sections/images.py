"""Which images fine-tuning gained and lost, with thumbnails where the sets' licences allow them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pandas

from engine.measures.image_changes import GAINED, MOST, ImageChange
from engine.report.results import Results
from engine.report.section import Picture, Section, Table


def section(results: Results) -> Section | None:
    changes = results.grid.changes if results.record.classes else ()
    if not changes:
        return None
    shown = {
        (name, int(image)): base64.b64decode(file)
        for name, files in results.record.thumbnails.items()
        for image, file in files.items()
    }
    most = max(changes, key=lambda change: change.rows / change.of)
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
        f"{most.rows} of {most.of} models {most.change} the same image of {most.evaluated_on}",
        "An image is gained by a model that is right about it where the pre-trained model was "
        "wrong, and lost the other way round. Shown are those that most models agree on.",
        _without(results, shown),
        tables=[table],
        pictures=_pictures(results, shown),
    )


def _row(results: Results, change: ImageChange) -> dict[str, Any]:
    classes, methods = results.record.classes, results.record.methods
    by_method = sorted(change.by_method.items(), key=lambda item: (-item[1], item[0]))
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
        "by_method": ", ".join(f"{methods.get(key, key)} {count}" for key, count in by_method),
    }


def _without(results: Results, shown: Mapping[tuple[str, int], bytes]) -> list[str]:
    """Sentences on the images that have no thumbnails, with the reason."""
    images = {(change.evaluated_on, change.index): None for change in results.grid.changes}
    sets = dict.fromkeys(name for name, _ in images)
    closed = [name for name in sets if name not in results.record.thumbnails]
    images = {key for key in images if key[0] not in closed}
    sentences = []
    if closed:
        sentences.append(
            f"No pictures of {', '.join(closed)}: the data set's recipe does not say that its "
            "licence lets them be shown (`dataset.thumbnails`)."
        )
    if absent := images - shown.keys():
        sentences.append(f"{len(absent)} images of the table have no picture, for want of room.")
    return sentences


def _pictures(results: Results, shown: Mapping[tuple[str, int], bytes]) -> dict[str, list[Picture]]:
    """The thumbnails of each model, set and change that has any."""
    pictures: dict[str, list[Picture]] = {}
    for change in results.grid.changes:
        if webp := shown.get((change.evaluated_on, change.index)):
            of_model = f"{change.model}, " if len(results.models) > 1 else ""
            caption = f"{of_model}{change.evaluated_on}: {change.change}"
            picture = Picture(_words(change, results.record.classes), webp)
            pictures.setdefault(caption, []).append(picture)
    return pictures


def _words(change: ImageChange, classes: list[str]) -> str:
    """`dog: cat before, right after; gained by 30 of 72 models`."""
    label, before, after = (classes[k] for k in (change.label, change.before, change.after))
    answers = f"{before} before, right" if change.change == GAINED else f"right before, {after}"
    return f"{label}: {answers} after; {change.change} by {change.rows} of {change.of} models"
