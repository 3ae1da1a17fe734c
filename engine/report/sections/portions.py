"""Fine-tuning on a portion of a training set."""

from __future__ import annotations

from engine.report import curves
from engine.report.curves import Varied
from engine.report.section import Section
from engine.report.tables import Results

PORTIONS = Varied(
    "dataset.portion",
    "portions",
    "Portions of the training set",
    "Each method was trained on a portion of each class of the set fine-tuned on, for as many "
    "epochs as on all of it, so in fewer steps. A smaller portion is a part of a larger one of the "
    "same seed. Images that are evaluated on stay the same.",
    "portion of the training images",
    "On a portion of {value}",
    "Already the smallest portion costs robustness",
)


def section(results: Results) -> Section | None:
    return curves.section(results, PORTIONS)
