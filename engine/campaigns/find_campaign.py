"""Find the finished run of a campaign, by its name and settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from engine.campaigns import plan_folder, record
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import read_plan
from engine.campaigns.record import FinishedCampaign
from engine.errors import CampaignError
from engine.recipe.campaigns import recipe_names
from engine.recipe.overrides import Override
from engine.recipe.schema import Recipe

RUNS = Path(Recipe.runs)


def campaign_folder(name: str) -> Path | None:
    """The folder that a name means: a path, or a name in `runs` as `rib status` prints it. None for
    the name of a recipe."""
    if name in recipe_names("campaigns"):
        return None
    return next((place for place in (Path(name), RUNS / name) if place.is_dir()), None)


def find_campaign(name: str, overrides: Sequence[Override]) -> FinishedCampaign:
    """The finished run of a campaign with these settings.

    Raises CampaignError if there is none or `name` is a folder, DamagedFile if its record is
    damaged.
    """
    if folder := campaign_folder(name):
        plans = [place for place in plan_folder.in_campaign(folder) if place.root.has(place.plan)]
        by = f", which `{read_plan(plans[0]).shown_command}` ran" if len(plans) == 1 else ""
        raise CampaignError(f"{folder} is a folder{by}: give the campaign's name and overrides")
    plan = make_plan(name, overrides)
    stem = Path(name).stem
    plans = [p for p in plan_folder.in_runs(plan.place.runs) if p.campaign.name.startswith(stem)]
    # Overrides that repeat defaults give another folder with the same plan.
    same = [p for p in plans if p.name == plan.place.name and p.root.has(p.record)]
    if same:
        return record.read_record(plan.place if plan.place in same else same[0])
    records = any(place.root.has(place.record) for place in plans)
    command = shlex.join(["rib", "campaign", name, *(override.text for override in overrides)])
    differs = ", but one with other settings" if records else ""
    raise CampaignError(
        f"{plan.recipe.runs} contains no finished run of {name} with these settings{differs}; "
        f"run `{command}` to finish it"
    )
