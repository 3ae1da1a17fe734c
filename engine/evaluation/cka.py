"""How far fine-tuning moved a model's features: CKA of every block, before against after.

The CKA of a model and the pre-trained model on a set is an artefact: a number a block (`hsic`),
from a seeded sample of the set's images.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from engine import models
from engine.data.sets import LabelledSet
from engine.errors import RecipeError
from engine.evaluation import bank, hsic
from engine.machine import precision, ranks
from engine.machine.files import digest
from engine.models.form import Form
from engine.recipe.schema import ModelRecipe, Recipe
from engine.run import Run
from engine.store.cells import Mix, essential

FILE = "cka.json"
CHAINS = (nn.Sequential, nn.ModuleList)


def evaluate(run: Run, mixes: Sequence[Mix], name: str) -> None:
    """Make the missing CKA of every mix on a set; the images are read once for each.

    Raises ValueError for a set with too few images, RecipeError for a model without blocks.
    """
    for mix in map(essential, mixes):
        run.make("cka", *_key(run, mix, name), functools.partial(_compute, run, mix, name))


def check(run: Run, name: str) -> None:
    """Refuse what `evaluate` would refuse, before anything is trained."""
    blocks_of(run.recipe.model)
    minibatches(run.recipe, run.sets[name])


def stored(run: Run, mix: Mix, name: str) -> dict[str, float | None]:
    """CKA of a mix by block, from the first to the last; None where features do not vary.

    Raises FileNotFoundError where it was not evaluated, ValueError where its file was altered.
    """
    label, key = _key(run, essential(mix), name)
    artifact = run.store.find("cka", label, key)
    if artifact is None:
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
        "layers": list(blocks_of(recipe.model)),
        **_form(run).key,
        "machine": run.machine,
    }
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{name}"[:120], key


def _form(run: Run) -> Form:
    """As the models are evaluated, but not compiled: a graph would hide what leaves a block."""
    return replace(Form.of(run.recipe.evaluate, run.device), compile="never")


def _compute(run: Run, mix: Mix, name: str) -> Callable[[Path], object]:
    """Both models see each of this rank's minibatches; returns what writes their CKA."""
    form, layers = _form(run), blocks_of(run.recipe.model)
    backbone = form.backbone(run.recipe.model, len(run.sets.classes), run.device)
    grams: list[torch.Tensor] = []  # of one minibatch; no output is held beyond it
    for layer in layers:
        backbone.net.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output: grams.append(hsic.gram(output))
        )
    pair: list[Mix] = [{run.base.name: 1.0}, mix]
    nets = bank.load(backbone, run, pair)
    normalize = models.Normalize(run.recipe.model, run.device)
    minibatches_of_all = minibatches(run.recipe, run.sets[name])
    of_rank = np.array_split(np.arange(len(minibatches_of_all)), ranks.world())[ranks.rank()]
    sums_3L = torch.zeros(3, len(layers), dtype=torch.float64, device=run.device)
    for batch in run.sets.source(name).batches(minibatches_of_all[k] for k in of_rank):
        x_BCHW, centred = normalize(batch.images), []
        for model in pair:
            grams.clear()
            with torch.inference_mode(), precision.autocast(form.precision, run.device):
                nets[bank.key_of(model)](x_BCHW)
            centred.append(hsic.centred(torch.stack(grams)))
        a_LNN, b_LNN = centred
        pairs = ((a_LNN, b_LNN), (a_LNN, a_LNN), (b_LNN, b_LNN))
        sums_3L += torch.stack([hsic.hsic(x, y) for x, y in pairs])
    if ranks.world() > 1:
        dist.all_reduce(sums_3L)
    values = zip(layers, hsic.cka(sums_3L).tolist(), strict=True)
    known = {layer: None if math.isnan(value) else value for layer, value in values}
    return lambda folder: (folder / FILE).write_text(json.dumps(known, indent=1))


def blocks(net: nn.Module, prefix: str = "") -> list[str]:
    """Names of a network's blocks in their order: what its chains of modules consist of.

    A chain within a chain is followed: a ViT has its transformer blocks, an EfficientNet and a
    ResNet their residual blocks, a ConvNeXt its stem's layers and its stages.
    """
    names = []
    for name, child in net.named_children():
        if isinstance(child, CHAINS):
            names += blocks(child, f"{prefix}{name}.")
        elif prefix and not isinstance(child, nn.Identity):
            names.append(f"{prefix}{name}")
    return names


@functools.cache
def _blocks(arch: str, image_size: int, projection: int) -> tuple[str, ...]:
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.random.fork_rng(devices=[]):  # weights drawn here must not change later ones
        return tuple(blocks(models.create(model, 2)))


def blocks_of(recipe: ModelRecipe) -> tuple[str, ...]:
    """`blocks` of an architecture. Raises RecipeError where it has none."""
    names = _blocks(recipe.arch, recipe.image_size, recipe.projection)
    if not names:
        raise RecipeError(
            f"evaluate.cka: {recipe.arch} is no chain of blocks, so no layers can be compared; set "
            "evaluate.cka=0 for it"
        )
    return names
