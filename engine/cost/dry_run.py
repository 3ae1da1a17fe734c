"""A dry run of a campaign: everything is asked for in the order of the grid, nothing is computed.

The methods themselves say what they need: their own `prepare`, `loss`, `export` and `entries` run
on tensors without content, whose operations are counted. So a user's own method is counted too, and
an estimate cannot drift from what will run.
"""

from __future__ import annotations

import dataclasses
import math

from engine.cost.ledger import Ledger
from engine.cost.planned import PlannedContext
from engine.evaluation import sample
from engine.recipe.schema import Recipe

PREPARE = "prepare"


class DryRun(Ledger):
    """What a plan would do to sets of these labels; `run` fills `work` and `cells`."""

    def run(self) -> None:
        """The jobs of `engine.grid.jobs`, one after the other."""
        planned = self.context(PREPARE, self.recipe)
        for name in self.places:
            planned.features(planned.base, self.labelled[name])
            for split in (sample.split_of(planned.recipe, name), "holdout"):
                planned.evaluate([(planned.base, {planned.base.name: 1.0})], name, split)
        drawn = self._drawn(planned)
        for downstream in self.plan.sets:
            first = self.recipe_of(self.plan.methods[0], downstream)
            seeds = [dataclasses.replace(first, seed=first.seed + k) for k in range(first.seeds)]
            made = [
                self.context(downstream, one).cell(method)
                for one in seeds
                for method in self.plan.methods
            ]
            mixes = [(cell, entry.mix) for cell in made for entry in cell.entries]
            planned = self.context(downstream, first)
            for name in self.places:
                split = sample.split_of(planned.recipe, name)
                planned.evaluate(mixes, name, split, drawn.get(name))

    def _drawn(self, planned: PlannedContext) -> dict[str, int]:
        """Images of each set that a budget leaves: equally many, or all of a small one.

        Their total over the downstream sets is what `budget` will draw; how it spreads is
        known only when the pre-trained model has seen the sets.
        """
        share = self.recipe.evaluate.budget
        if share == 1:
            return {}
        split = {name: sample.split_of(planned.recipe, name) for name in self.places}
        sizes = {name: len(self.labelled[name].split(split[name])) for name in self.places}
        upstream = sizes.pop(self.recipe.dataset.upstream)
        left = math.ceil(share * sum(sizes.values()) - 1e-9)
        drawn: dict[str, int] = {}
        for name in sorted(sizes, key=lambda name: sizes[name]):
            drawn[name] = min(sizes[name], left // (len(sizes) - len(drawn)))
            left -= drawn[name]
        return drawn | {self.recipe.dataset.upstream: min(upstream, max(drawn.values()))}

    def context(self, job: str, recipe: Recipe) -> PlannedContext:
        return PlannedContext(self, job, recipe)
