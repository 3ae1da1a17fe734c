"""Images that fine-tuning gained and lost, and that methods dispute.

The page shows thumbnails if the dataset's licence allows them.
"""

from __future__ import annotations

import pandas

from engine.measures import image_changes
from engine.measures.image_changes import DISPUTED, GAINED, MOST
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
            verb = "right" if change == DISPUTED else change
            alt = f"{row['class']}: {answer}; {verb} by {row['models']} of {row['of']} models"
            gallery = pictures.setdefault(f"{on}: {change}{results.of(row['model'])}", [])
            gallery.append(Picture(alt, f"data:image/webp;base64,{webp}"))
    changed = [change for change in changes if change.change != DISPUTED]
    most = max(changed, key=lambda change: change.rows / change.of)
    return Section(
        "images",
        f"{most.rows} of {most.of} models {most.change} the same image of {most.evaluated_on}",
        "A model gains an image if it is right and the pretrained model was wrong, and loses it in "
        "the opposite case; an image is disputed if some methods are right on it more often than "
        "others. Weight averages are not counted, because they share their trainings. Pictures "
        "appear if the dataset's licence allows it (dataset.thumbnails) and there is room.",
        tables=[
            Table(
                "images",
                f"Per dataset, at most {MOST} images that most models gained, {MOST} that most "
                f"lost, and {MOST} on which two methods differ most. image: index in the pack. "
                "before: the pretrained model's prediction; after: the most frequent prediction of "
                "models that gained or lost it, or are wrong on a disputed one. models: how many "
                "trained models (averages excluded) gained or lost it, or are right on a disputed "
                "one.",
                data,
            )
        ],
        pictures=pictures,
    )
