"""What a report says first: the result in a sentence, and what was done."""

from __future__ import annotations

from collections.abc import Sequence

from engine.measures.standings import Standings, counted, signed
from engine.report import certainty, table
from engine.report.display import range_text
from engine.report.tables import Results

FINE_TUNE = "fine_tune"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def heading(title: str, results: Results) -> str:
    """The finding of a report with one model, or its title."""
    if results.record.sweep is not None:
        return _of_sweep(results)
    return finding(results.models[0]) if len(results.models) == 1 else title


def finding(model: Standings) -> str:
    """The result in one sentence: the highest mRI, its interval, and plain fine-tuning's mRI."""
    ranked = model.ranked()
    if not ranked:
        return "No method has been fine-tuned on every set yet."
    where = table.measured_on(model)
    if set(model.downstreams) == set(model.sets):
        n = len(model.sets) - 1
        where = f"the {counted('set', n, words(n))} a model was not fine-tuned on"
    line = ranked[0]
    ends = f"95% interval {range_text(line.mri.mri_low, line.mri.mri_high)}"
    points = f"{signed(line.mri.mri)} points on {where} ({ends}"
    if len(ranked) == 1:
        return f"{line.title} has an mRI of {points})."
    text = (
        f"{line.title} has the highest of {words(len(ranked))} mRIs, {points}, not corrected for "
        "the choice of the highest)"
    )
    plain = next((row for row in ranked if row.arm.method == FINE_TUNE), None)
    if plain is None:
        return f"{text}."
    if plain is line:
        return f"{text}; the next is {ranked[1].title} with {signed(ranked[1].mri.mri)}."
    return f"{text}; plain fine-tuning has {signed(plain.mri.mri)}."


def lead(results: Results) -> str:
    """What was done, and for one model which methods can be told from the best."""
    model, *more = results.models
    n, k = len(model.downstreams), len({line.arm.method for line in model.lines})
    name = f"one of {words(len(results.models))}" if more else model.model
    start = f"{counted('method', k, words(k).capitalize())} start{'s' * (k == 1)}"
    if results.record.sweep is not None:
        k = len(model.lines)
        start = f"{counted('variant', k, words(k).capitalize())} of a method start{'s' * (k == 1)}"
    trained_on = model.downstreams[0] if n == 1 else f"one of {words(n)} sets"
    repeated = "; this is repeated for each of them" * (n > 1)
    text = (
        f"{start} from the same pre-trained model ({name}). Each fine-tunes it on {trained_on} and "
        f"is evaluated on {table.measured_on(model)}{repeated}."
    )
    if more or results.record.sweep is not None:
        return text
    if changes := _upstream(model):
        text += f" Change on the {results.record.upstream} set, in points: {', '.join(changes)}."
    return f"{certainty.indistinguishable(model, results.sure)} {text}".strip()


def findings(models: Sequence[Standings]) -> list[str]:
    """A sentence for each of several models."""
    return [f"{model.model}: {finding(model)}" for model in models] if len(models) > 1 else []


def words(number: int) -> str:
    """Small numbers as prose writes them."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def _of_sweep(results: Results) -> str:
    """The span of mRI. No variant is named: mRI is measured on the test sets."""
    (title,) = results.record.methods.values()
    values = [line.mri.mri for _, line in results.lines]
    return (
        f"{title} in {counted('variant', len(values), words(len(values)))}: mRI from "
        f"{signed(min(values))} to {signed(max(values))} points."
    )


def _upstream(model: Standings) -> list[str]:
    """Change upstream of the best method, and of plain fine-tuning."""
    ranked = model.ranked()
    shown = ranked[:1] + [line for line in ranked[1:] if line.arm.method == FINE_TUNE]
    return [
        f"{line.title}\u00a0{signed(line.upstream)}" for line in shown if line.upstream is not None
    ]
