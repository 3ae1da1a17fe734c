"""Images that fine-tuning gained and lost, with thumbnails if the dataset's licence allows them."""

from __future__ import annotations

import pandas

from engine.measures import image_changes
from engine.measures.image_changes import GAINED, MOST
from engine.measures.rows import TEST, of_role
from engine.report.results import Results
from engine.report.section import Picture, Section, Table


def section(results: Results) -> Section | None:
    """The images that most models gained or lost; None if the record does not name the classes."""
    changes = image_changes.of(of_role(results.evaluations, TEST))
    if not changes or not results.record.classes:
        return None
    classes, methods = results.record.classes, results.record.methods
    names = {"index": "image", "label": "class", "rows": "models"}
    data = pandas.DataFrame(changes).rename(columns=names)
    for name in ("class", "before", "after"):
        data[name] = [classes[k] for k in data[name]]
    counts = [
        sorted(change.by_method.items(), key=lambda of: (-of[1], of[0])) for change in changes
    ]
    data["by_method"] = [", ".join(f"{methods.get(k, k)} {n}" for k, n in of) for of in counts]
    pictures: dict[str, list[Picture]] = {}
    for row in data.to_dict("records"):
        on, change = row["evaluated_on"], row["change"]
        if webp := results.record.thumbnails.get(on, {}).get(str(row["image"])):
            answer = f"{row['before']} before" if change == GAINED else f"{row['after']} after"
            alt = f"{row['class']}: {answer}; {change} by {row['models']} of {row['of']} models"
            gallery = pictures.setdefault(f"{on}: {change}{results.of(row['model'])}", [])
            gallery.append(Picture(alt, f"data:image/webp;base64,{webp}"))
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
                data,
            )
        ],
        pictures=pictures,
    )
