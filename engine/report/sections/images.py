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
    rows, pictures = [], dict[str, list[Picture]]()
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
        thumbnails = results.record.thumbnails.get(change.evaluated_on, {})
        if webp := thumbnails.get(str(change.index)):
            answer = f"{before} before" if change.change == GAINED else f"{after} after"
            counts = f"{change.change} by {change.rows} of {change.of} models"
            gallery = f"{change.evaluated_on}: {change.change}{results.of(change.model)}"
            picture = Picture(f"{label}: {answer}; {counts}", f"data:image/webp;base64,{webp}")
            pictures.setdefault(gallery, []).append(picture)
    most = max(changes, key=lambda change: change.rows / change.of)
    return Section(
        "images",
        f"{most.rows} of {most.of} models {most.change} the same image of {most.evaluated_on}",
        "An image is gained by a model that is right about it where the pre-trained model was "
        "wrong, and lost the other way round. Shown are those that most models agree on; averages "
        "of several models are not counted, since they share their trainings. There are pictures "
        "where the data set's recipe says that its licence lets them be shown "
        "(dataset.thumbnails), as far as there is room.",
        tables=[
            Table(
                "images",
                f"The images of each set that most models gained and lost, {MOST} of each at "
                "most. image: its place in the set's pack. before: the pre-trained model's answer; "
                "after: what most of the models that lost it answer. models: how many did, of "
                "those in a row of a table that were fine-tuned on other sets and are no averages.",
                pandas.DataFrame(rows),
            )
        ],
        pictures=pictures,
    )
