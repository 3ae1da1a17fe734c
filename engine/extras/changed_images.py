"""Images that fine-tuning flips between right and wrong, and that methods dispute.

The page shows thumbnails if the dataset's licence allows them.
"""

from __future__ import annotations

import pandas

from engine.measures import image_changes
from engine.measures.image_changes import DISPUTED, MOST, POSITIVE
from engine.measures.rows import TEST, of_role
from engine.report.results import Results
from engine.report.section import Picture, Section, Table


def section(results: Results) -> Section | None:
    """The images that most models flipped; None if the record does not name the classes."""
    changes = image_changes.find_changes(of_role(results.evaluations, TEST))
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
            answer = f"{row['before']} before" if change == POSITIVE else f"{row['after']} after"
            what = "right" if change == DISPUTED else change
            alt = f"{row['class']}: {answer}; {what} by {row['models']} of {row['of']} models"
            gallery = pictures.setdefault(f"{on}: {change}{results.of(row['model'])}", [])
            gallery.append(Picture(alt, f"data:image/webp;base64,{webp}"))
    changed = [change for change in changes if change.change != DISPUTED]
    most = max(changed, key=lambda change: change.rows / change.of)
    way = "wrong to right" if most.change == POSITIVE else "right to wrong"
    return Section(
        "images",
        f"{most.rows} of {most.of} models flip the same image of {most.evaluated_on} from {way}",
        "Positive flip: the pretrained model is wrong, and the fine-tuned model right; negative "
        "flip: the opposite. An image is disputed if some methods are right on it more often than "
        "others. Weight averages are not counted, because they share their trainings. Pictures "
        "appear if the dataset's licence allows it (dataset.thumbnails) and there is room.",
        tables=[
            Table(
                "images",
                f"Per dataset, at most {MOST} images with most positive flips, {MOST} with most "
                f"negative flips, and {MOST} on which two methods differ most. image: index in the "
                "pack. before: the pretrained model's prediction; after: the most frequent "
                "prediction of models that flipped it, or are wrong on a disputed one. models: how "
                "many trained models (averages excluded) flipped it, or are right on a disputed "
                "one.",
                data,
            )
        ],
        pictures=pictures,
    )
