"""Fine-tuning on K images a class."""

from __future__ import annotations

from engine.report import curves
from engine.report.curves import Varied
from engine.report.section import Section
from engine.report.tables import Results

SHOTS = Varied(
    "dataset.shots",
    "shots",
    "Images a class",
    "Each method was trained on K images a class of the set fine-tuned on, for as many epochs as "
    "on all of it, so in fewer steps. A smaller K is a part of a larger one of the same seed. "
    "Images that are evaluated on stay the same.",
    "images a class",
    "With K = {value}",
    "The slides say that robustness collapses even with one image a class (of OpenAI and LAION-2B)",
)


def section(results: Results) -> Section | None:
    return curves.section(results, SHOTS)
