"""Which images fine-tuning gained and lost, with thumbnails where the sets' licences allow them."""

from __future__ import annotations

import pandas

from engine.measures.image_changes import GAINED, MOST
from engine.report.results import Results
from engine.report.section import Picture, Section, Table


def section(results: Results) -> Section | None:
    changes = results.grid.changes if results.record.classes else ()
    if not changes:
        return None
    classes, methods = results.record.classes, results.record.methods
    thumbnails = results.record.thumbnails
    rows, absent = [], set()
    pictures: dict[str, list[Picture]] = {}
    for change in changes:
        label, before, after = (classes[k] for k in (change.label, change.before, change.after))
        by_method = sorted(change.by_method.items(), key=lambda item: (-item[1], item[0]))
        rows.append(
            {
                "model": change.model,
                "evaluated_on": change.evaluated_on,
                "change": change.change,
                "image": change.index,
                "class": label,
                "before": before,
                "after": after,
                "models": change.rows,
                "of": change.of,
                "by_method": ", ".join(f"{methods.get(key, key)} {n}" for key, n in by_method),
            }
        )
        webp = thumbnails.get(change.evaluated_on, {}).get(str(change.index))
        if webp is None:
            absent.add((change.evaluated_on, change.index))
            continue
        answers = f"{before} before, right" if change.change == GAINED else f"right before, {after}"
        words = f"{label}: {answers} after; {change.change} by {change.rows} of {change.of} models"
        of_model = f"{change.model}, " if len(results.models) > 1 else ""
        gallery = pictures.setdefault(f"{of_model}{change.evaluated_on}: {change.change}", [])
        gallery.append(Picture(words, f"data:image/webp;base64,{webp}"))
    most = max(changes, key=lambda change: change.rows / change.of)
    return Section(
        "images",
        f"{most.rows} of {most.of} models {most.change} the same image of {most.evaluated_on}",
        "An image is gained by a model that is right about it where the pre-trained model was "
        "wrong, and lost the other way round. Shown are those that most models agree on.",
        _without(results, absent),
        tables=[
            Table(
                "images",
                f"The images of each set that most models gained and lost, {MOST} of each at "
                "most. image: its place in the set's pack. before: the pre-trained model's answer; "
                "after: what most of the models that lost it answer. models: how many did, of "
                "those in a row of a table that were fine-tuned on other sets.",
                pandas.DataFrame(rows),
            )
        ],
        pictures=pictures,
    )


def _without(results: Results, absent: set[tuple[str, int]]) -> list[str]:
    """Sentences on the images that have no thumbnails, with the reason."""
    sets = dict.fromkeys(change.evaluated_on for change in results.grid.changes)
    closed = [name for name in sets if name not in results.record.thumbnails]
    sentences = []
    if closed:
        sentences.append(
            f"No pictures of {', '.join(closed)}: the data set's recipe does not say that its "
            "licence lets them be shown (`dataset.thumbnails`)."
        )
    if count := sum(name not in closed for name, _ in absent):
        sentences.append(f"{count} images of the table have no picture, for want of room.")
    return sentences
