"""What the numbers mean, and what they cannot say."""

from __future__ import annotations

from statistics import fmean

from engine import recipe
from engine.report import frames, table
from engine.report.section import Section
from engine.report.tables import Results

DRAWINGS = (
    "Of emoji-RIB: a class is a concept, of which each style has a single drawing in some "
    "renderings (background, scale, shift, rotation). A held-out image of a set that a model was "
    "trained on is another rendering of a drawing that it has seen, so accuracy on the set "
    "fine-tuned on and on upstream is not accuracy on new drawings. RI is: it counts the other "
    "sets alone, whose drawings are other vendors'. All drawings of a concept are one source "
    "image, so the intervals are about other concepts, drawn in these styles."
)


def section(results: Results) -> Section | None:
    models, sure = results.models, results.sure
    before = ", ".join(
        f"{fmean(model.before[name] for name in model.sets):.1f}%"
        + (f" ({model.model})" if len(models) > 1 else "")
        for model in models
    )
    identity = (
        f"Mean accuracy on the other sets is therefore mRI plus the mean accuracy before: {before}."
        if models[0].is_square
        else "The sets that are only evaluated count in RI of every column."
    )
    statements = [
        f"RI of a method on one set is the mean, over {table.measured_on(models[0])}, of "
        "accuracy after fine-tuning minus accuracy before; mRI is the mean of RI over "
        f"{table.averaged_over(models[0])}. {identity}",
        "A positive mRI means that learning one set carried over to the others; a negative one "
        "means that it damaged what the pre-trained model could do. The set fine-tuned on and the "
        f"{results.record.upstream} set are shown, but are no part of RI.",
        "Intervals hold the middle 95% of bootstrap resamples of the source images. Copies of one "
        "source in several sets are drawn together, and every model is measured against the "
        "pre-trained one on the same draw.",
        f"They cover training seeds too, {sure.seeds} of them."
        if sure.seeds > 1
        else "The intervals are about the choice of images; another training seed is not in them, "
        "so take a difference of a point or two between methods as unproven until several seeds "
        "agree.",
    ]
    if results.record.contact_sheet:  # of emoji-RIB alone
        statements.append(DRAWINGS)
    if any(frames.reference(model) for model in models):
        statements.append(f"Published numbers: {recipe.published()['source']}.")
    return Section("how-to-read", "How to read this", statements=statements)
