"""How far fine-tuning moved a model's features: CKA of every block, before against after.

The CKA of a model and the pre-trained model on a set is an artefact: a number a block (`hsic`),
from a seeded sample of the set's images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation import bank, hsic, layers, passes
from engine.machine import precision, ranks
from engine.machine.files import digest
from engine.models.form import Form
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Artifact
from engine.store.cells import Mix, essential

FILE = "cka.json"


def evaluate(run: Run, mixes: Sequence[Mix], name: str) -> None:
    """Make the missing CKA of every mix on a set. The images are read once a model, as one model is
    on the device at a time.

    Raises ValueError for a set with too few images, RecipeError for a model without blocks.
    """
    missing: list[dict[str, float]] = []
    for mix in map(essential, mixes):
        if run.find("cka", *_key(run, mix, name)) is None and mix not in missing:
            missing.append(mix)
    if not missing:
        return
    with run.threads():
        grams = _Grams(run, name)
        before = list(grams.of({run.base.name: 1.0}))
        for mix in missing:
            sums_3L = torch.zeros(3, len(grams.layers), dtype=torch.float64, device=run.device)
            for a_LNN, b_LNN in zip(before, grams.of(mix), strict=True):
                pairs = ((a_LNN, b_LNN), (a_LNN, a_LNN), (b_LNN, b_LNN))
                sums_3L += torch.stack([hsic.hsic(x, y) for x, y in pairs])
            if ranks.world() > 1:
                dist.all_reduce(sums_3L)
            values = dict(zip(grams.layers, hsic.cka(sums_3L).tolist(), strict=True))
            _store(run, mix, name, values)


def check(run: Run, name: str) -> None:
    """Refuse what `evaluate` would refuse, before anything is trained."""
    layers.names_of(run.recipe.model)
    minibatches(run.recipe, run.sets[name])


def find(run: Run, mix: Mix, name: str) -> Artifact | None:
    """The CKA of a mix on a set, or None if it was not evaluated."""
    return run.store.find("cka", *_key(run, essential(mix), name))


def stored(run: Run, mix: Mix, name: str) -> dict[str, float | None]:
    """CKA of a mix by block, from the first to the last; None where features do not vary.

    Raises FileNotFoundError where it was not evaluated, ValueError where its file was altered.
    """
    artifact = find(run, mix, name)
    if artifact is None:
        label, _ = _key(run, essential(mix), name)
        raise FileNotFoundError(
            f"the store has no CKA of {label}: run the campaign again to make it"
        )
    return json.loads(artifact.checked(FILE).read_text())


def minibatches(recipe: Recipe, labelled: LabelledSet) -> list[np.ndarray]:
    """Positions (int64 [n] each) of a set's sample, in random minibatches of about equal size.

    The sample is of the images that the set is evaluated on: `evaluate.cka` of them, or all where
    there are fewer. A minibatch has at most `evaluate.batch_size` images, unless the estimator
    needs more. Raises ValueError naming a set that has too few images.
    """
    positions = labelled.split(recipe.split_of(labelled.name))
    if len(positions) < hsic.FEWEST:
        raise ValueError(
            f"evaluate.cka: {labelled.name} has {len(positions)} images to evaluate, and CKA needs "
            f"{hsic.FEWEST} or more; set evaluate.cka=0"
        )
    seed = [recipe.dataset.seed, int(digest([labelled.pack.fingerprint, "cka"]), 16)]
    drawn = np.random.default_rng(seed).permutation(positions)[: recipe.evaluate.cka]
    size = max(recipe.evaluate.batch_size, hsic.FEWEST)
    count = min(math.ceil(len(drawn) / size), len(drawn) // hsic.FEWEST)
    return np.array_split(drawn, count)


def _key(run: Run, mix: Mix, name: str) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact that holds a mix's CKA on a set."""
    recipe, labelled = run.recipe, run.sets[name]
    split = recipe.split_of(name) if len(labelled.holdout) else "all"
    key = {
        "before": run.base.name,
        "mix": dict(mix),
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)],
        "images": recipe.evaluate.cka,
        "batch_size": recipe.evaluate.batch_size,
        "layers": list(layers.names_of(recipe.model)),
        **_form(run).key,
        "machine": run.machine,
    }
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{name}"[:120], key


def _form(run: Run) -> Form:
    """As the models are evaluated, but not compiled: a graph would hide what leaves a block."""
    return replace(Form.of_evaluation(run.recipe, run.device), compile="never")


def _store(run: Run, mix: Mix, name: str, values: dict[str, float]) -> None:
    known = {layer: None if math.isnan(value) else value for layer, value in values.items()}

    def write(folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(known, indent=1))

    label, key = _key(run, mix, name)
    ranks.first(lambda: run.store.make("cka", label, key, write))


class _Grams:
    """Gram matrices of all blocks for this rank's minibatches of a set."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.source = run.sets.source(name)
        all_ranks = minibatches(run.recipe, run.sets[name])
        numbers = np.array_split(np.arange(len(all_ranks)), ranks.world())[ranks.rank()]
        self.batches = [all_ranks[number] for number in numbers]
        self.layers = layers.names_of(run.recipe.model)
        self.form = _form(run)
        classes = len(run.sets.classes)
        self.backbone = self.form.backbone(run.recipe.model, classes, run.device)
        self.normalize = models.Normalize(run.recipe.model, run.device)

    def of(self, mix: Mix) -> Iterator[torch.Tensor]:
        """`hsic.centred` Gram matrices [L, n, n] of each minibatch, of the model that a mix is."""
        parents = {name: passes.stored_cell(self.run.store, name) for name in mix}
        (state,) = bank.states(self.run, [mix], parents)
        for head in models.head_names_of(self.run.recipe.model):
            del state[head]
        state = self.backbone.state(state)
        prompt_CHW = next(iter(parents.values())).prompt() if len(mix) == 1 else None
        prompt_CHW = 0 if prompt_CHW is None else prompt_CHW.to(self.run.device)
        net = self.backbone.net
        autocast = precision.autocast(self.form.precision, self.run.device)
        for batch in self.source.batches(self.batches):
            x_BCHW = self.normalize(batch.images) + prompt_CHW
            observed = layers.observed(net, self.layers, hsic.gram)
            with torch.inference_mode(), autocast, observed as grams:
                self.backbone.given(state, x_BCHW)
            yield hsic.centred(torch.stack(grams))
