"""Runs folders with campaigns and artefacts that nothing computed."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.campaigns import job_states, record
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import REPORT, Plan, plan_to_json
from engine.campaigns.plan_folder import PLANS, PlanFolder
from engine.machine.files import write_atomic
from engine.recipe import overrides
from engine.store.artifacts import Store
from loaders.files.durable import file_hash

WORDS = ("dataset.sets=[twemoji,openmoji]", "methods=[fine_tune,soup]", "replicates=0")
_plan = functools.cache(lambda: make_plan("emoji", overrides.parsed(WORDS)))


def begun(runs: Path, name: str = "emoji") -> Plan:
    """A campaign that has a plan and no record."""
    place = PlanFolder(runs / name / PLANS / _plan().place.name)
    plan = dataclasses.replace(_plan(), place=place)
    write_atomic(place.plan, plan_to_json(plan))
    return plan


def finish(plan: Plan, artifacts: Sequence[str]) -> None:
    """Write the record of a campaign that needs these artefacts."""
    store = plan.place.store
    files = [path for name in artifacts for path in (store / name).glob("*.parquet")]
    values = {"sets": list(plan.sets), "downstreams": [], "upstream": "upstream", "methods": {}}
    values |= {"settings": {}, "credits": [], "contact_sheet": "", "holdout": True, "rows": []}
    values |= {"benchmark": plan.recipe.dataset.name, "version": 1}
    values |= {"distances": None, "evaluations": [], "artifacts": list(artifacts)}
    values["files"] = {path.relative_to(store).as_posix(): file_hash(path) for path in files}
    record.write_record(plan.place, record.Record(plan.name, **values))
    job_states.set_done(plan.place, REPORT)


def artifact(runs: Path, kind: str, label: str, size: int, **key: Any) -> str:
    """An artefact of one file of this size; its kind and name."""

    def build(folder: Path) -> None:
        (folder / ("x.parquet" if kind == "predictions" else "x")).write_bytes(bytes(size))

    made = Store(runs / "store").make(kind, label, {"label": label, **key}, build)
    return f"{kind}/{made.name}"
