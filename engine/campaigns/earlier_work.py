"""Finished work that a campaign finds although other code or versions made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.campaigns.plan import Plan
from engine.campaigns.record import MadeBy, Record
from engine.store import made_by
from engine.store.artifacts import Store


def of_store(plan: Plan, device: str | None) -> str:
    """A remark on artefacts that a campaign may reuse although other code or versions made them,
    or empty.

    device: the kind of device of its jobs (`made_by.kind_of_device`), or None if unknown.
    """
    store = Store(plan.place.store, plan.recipe.generation)
    now = {**made_by.installed(), **({made_by.DEVICE: device} if device else {})}
    makers = (
        MadeBy(dict(marker.made_by), 1)
        for _, marker in store.artifacts()
        if marker.key.get("generation", 0) == store.generation
    )
    count, words = _others(makers, now)
    if not count:
        return ""
    return (
        f"other code or versions made {count} artefacts of its store ({words}); those that it "
        f"needs are reused; generation={store.generation + 1} makes everything anew"
    )


def of_record(record: Record) -> str:
    """A remark on a finished campaign that other code or versions than the installed ones made, or
    empty."""
    count, words = _others(record.made_by, made_by.installed())
    if not count:
        return ""
    return f"other code or versions than the installed ones made {count} of its artefacts ({words})"


def _others(makers: Iterable[MadeBy], now: Mapping[str, str]) -> tuple[int, str]:
    """How many artefacts others made, and in what these differ."""
    found = [(each, made_by.differences(each.values, now)) for each in makers]
    count = sum(each.artifacts for each, words in found if words)
    return count, ", ".join(sorted({word for _, words in found for word in words}))
