"""Images that fine-tuning gained and lost, with thumbnails if licences allow them."""

from __future__ import annotations

import pandas

from engine.measures.image_changes import GAINED, MOST
from engine.report.results import Results
from engine.report.section import Picture, Section, Table


def section(results: Results) -> Section | None:
    changes = results.image_changes
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
        "A model gains an image if it is right and the pretrained model was wrong, and loses it in "
        "the opposite case. The table has the images that most models agree on. Weight averages "
        "are not counted, because they share their trainings. Pictures appear if the dataset's "
        "licence allows it (dataset.thumbnails) and there is room.",
        tables=[
            Table(
                "images",
                f"Per dataset, at most {MOST} images gained and {MOST} lost by most models. image: "
                "index in the pack. before: the pretrained model's prediction; after: the most "
                "frequent prediction of models that lost it. models: how many trained models "
                "(averages excluded) made this change.",
                pandas.DataFrame(rows),
            )
        ],
        pictures=pictures,
    )
