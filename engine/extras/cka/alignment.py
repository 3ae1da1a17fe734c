"""Similarity of a model's features before and after fine-tuning: linear CKA of every block.

Centered kernel alignment compares two layers' features of the same images: 1 if they are equal up
to rotation and scale, near 0 if they are unrelated (Kornblith et al. 2019, equation 4). It consists
of HSIC, estimated without bias in each minibatch of n images (Song et al. 2012, equation 5) and
averaged over minibatches before taking the ratio (Nguyen et al. 2021, equation 3), so its value
does not depend on the minibatch size.

The CKA of a model on a dataset is an artefact: one number per block, from a seeded sample.
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

from engine import models
from engine.data.sets import LabelledSet
from engine.errors import RecipeError
from engine.evaluation import bank
from engine.extras.cka import FEWEST
from engine.machine import precision, ranks
from engine.machine.layers import blocks
from engine.models.execution import Form
from engine.recipe.schema import ModelRecipe, Recipe
from engine.run import Run
from engine.store.artifacts import EXTRAS as ARTIFACTS
from engine.store.artifacts import Artifact
from engine.store.cells import Mix, canonical_mix
from loaders.files.durable import short_digest

FILE = "cka.json"


def evaluate(run: Run, mixes: Sequence[Mix], name: str, images: int) -> None:
    """Make the missing CKA of every mix on a dataset; images are read once per mix.

    images: the number of images in the sample, or all if there are fewer.

    Raises ValueError for a dataset with too few images, RecipeError for a model without blocks.
    """
    for mix in map(canonical_mix, mixes):
        compute = functools.partial(_compute, run, mix, name, images)
        run.make(ARTIFACTS, *_key(run, mix, name, images), compute)


def find(run: Run, mix: Mix, name: str, images: int) -> Artifact | None:
    """The artefact with a mix's CKA on a dataset, or None if any rank does not find it."""
    return run.find(ARTIFACTS, *_key(run, canonical_mix(mix), name, images))


def stored(run: Run, mix: Mix, name: str, images: int) -> dict[str, float | None]:
    """CKA of a mix by block, from the first to the last; None if features do not vary.

    Raises FileNotFoundError if it was not evaluated, ValueError if its file was changed.
    """
    label, key = _key(run, canonical_mix(mix), name, images)
    artifact = run.store.find(ARTIFACTS, label, key)
    if artifact is None:
        raise run.store.missing(ARTIFACTS, label, key)
    return json.loads(artifact.checked(FILE).read_text("utf-8"))


def minibatches(recipe: Recipe, labelled: LabelledSet, images: int) -> list[np.ndarray]:
    """Positions (int64 [n] each) of a dataset's sample, in random minibatches of about equal size.

    The sample has `images` of the evaluated images, or all if there are fewer. A minibatch has at
    most `evaluate.batch_size` images, unless the estimator needs more. Raises ValueError, naming
    the dataset, if it has too few images.
    """
    positions = labelled.split(recipe.split_of(labelled.name))
    if len(positions) < FEWEST:
        raise ValueError(
            f"extras.cka: {labelled.name} has {len(positions)} evaluated images, but CKA needs at "
            f"least {FEWEST}: leave extras.cka out"
        )
    seed = [recipe.dataset.seed, int(short_digest([labelled.pack.fingerprint, "cka"]), 16)]
    drawn = np.random.default_rng(seed).permutation(positions)[:images]
    size = max(recipe.evaluate.batch_size, FEWEST)
    count = min(math.ceil(len(drawn) / size), len(drawn) // FEWEST)
    return np.array_split(drawn, count)


def _key(run: Run, mix: Mix, name: str, images: int) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact with a mix's CKA on a dataset."""
    recipe, labelled = run.recipe, run.sets[name]
    split = recipe.split_of(name) if len(labelled.holdout) else "all"
    key = {
        "before": run.base.name,
        "mix": dict(mix),
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)],
        "images": images,
        "batch_size": recipe.evaluate.batch_size,
        "layers": list(blocks_of(recipe.model)),
        **_form(run).key,
        "machine": run.machine,
    }
    return f"cka-{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{name}"[:120], key


def _form(run: Run) -> Form:
    """As in evaluation, but not compiled: a graph would hide the blocks' outputs."""
    return replace(Form.of(run.recipe.evaluate, run.device), compile="never")


def _compute(run: Run, mix: Mix, name: str, images: int) -> Callable[[Path], object]:
    """Run both models on this rank's minibatches. Returns a function that writes their CKA."""
    form, layers = _form(run), blocks_of(run.recipe.model)
    backbone = form.backbone(run.recipe.model, len(run.sets.classes), run.device)
    grams: list[torch.Tensor] = []  # of one minibatch, so outputs are freed after it
    for layer in layers:
        backbone.net.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output: grams.append(gram(output))
        )
    pair: list[Mix] = [{run.base.name: 1.0}, mix]
    nets = bank.load(backbone, run, pair)
    normalize = models.Normalize(run.recipe.model, run.device)
    of_rank = minibatches(run.recipe, run.sets[name], images)[ranks.rank() :: ranks.world()]
    sums_3L = torch.zeros(3, len(layers), dtype=torch.float64, device=run.device)
    for batch in run.sets.source(name).batches(of_rank):
        x_BCHW, of_pair = normalize(batch.images), []
        for each in pair:
            grams.clear()
            with torch.inference_mode(), precision.autocast(form.precision, run.device):
                nets[bank.key_of(each)](x_BCHW)
            of_pair.append(centred(torch.stack(grams)))
        a_LNN, b_LNN = of_pair
        pairs = ((a_LNN, b_LNN), (a_LNN, a_LNN), (b_LNN, b_LNN))
        sums_3L += torch.stack([hsic(x, y) for x, y in pairs])
    if ranks.world() > 1:
        dist.all_reduce(sums_3L)
    values = zip(layers, cka(sums_3L).tolist(), strict=True)
    known = {layer: None if math.isnan(value) else value for layer, value in values}  # as JSON
    return lambda folder: (folder / FILE).write_text(json.dumps(known, indent=1), "utf-8")


@functools.cache
def _blocks(arch: str, image_size: int, projection: int) -> tuple[str, ...]:
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.random.fork_rng(devices=[]):  # creating the net must not change later random numbers
        return tuple(blocks(models.create(model, 2)))


def blocks_of(recipe: ModelRecipe) -> tuple[str, ...]:
    """`blocks` of an architecture. Raises RecipeError if it has none."""
    names = _blocks(recipe.arch, recipe.image_size, recipe.projection)
    if not names:
        raise RecipeError(
            f"extras.cka: {recipe.arch} is not a chain of blocks, so its layers cannot be "
            "compared: leave extras.cka out"
        )
    return names


def gram(features: torch.Tensor) -> torch.Tensor:
    """Inner products (float32 [n, n], under autocast too) of n images' features [n, ...], each
    taken as a whole: all channels at all positions or tokens, as in the papers.

    Subtracting the minibatch's mean changes no HSIC but avoids cancellation if it is large.
    """
    with torch.autocast(features.device.type, enabled=False):
        x_ND = features.float().flatten(1)
        x_ND = x_ND - x_ND.mean(0)
        return x_ND @ x_ND.T


def centred(gram_LNN: torch.Tensor) -> torch.Tensor:
    """Gram matrices [L, n, n] without their diagonals and centred without bias (float64).

    Off the diagonal, rows and columns then sum to 0 (Székely and Rizzo 2014, equation 2.3), for at
    least four images.
    """
    n = gram_LNN.shape[-1]
    k_LNN = gram_LNN.double()
    k_LNN.diagonal(dim1=-2, dim2=-1).zero_()
    rows_LN = k_LNN.sum(-1) / (n - 2)
    total_L = rows_LN.sum(-1) / (n - 1)
    k_LNN = k_LNN - rows_LN[:, :, None] - rows_LN[:, None, :] + total_L[:, None, None]
    k_LNN.diagonal(dim1=-2, dim2=-1).zero_()
    return k_LNN


def hsic(a_LNN: torch.Tensor, b_LNN: torch.Tensor) -> torch.Tensor:
    """Unbiased HSIC (float64 [L]) of `centred` Gram matrices; it can be below 0."""
    n = a_LNN.shape[-1]
    return (a_LNN * b_LNN).sum((-2, -1)) / (n * (n - 3))


def cka(sums_3L: torch.Tensor) -> torch.Tensor:
    """CKA (float64 [L]) from sums over minibatches of HSIC(before, after), HSIC(before, before) and
    HSIC(after, after). NaN if a layer's features do not vary. Sampling noise can make it
    negative."""
    cross_L, before_L, after_L = sums_3L
    varies_L = (before_L > 0) & (after_L > 0)
    norm_L = torch.where(varies_L, before_L, torch.nan).sqrt() * after_L.clamp(min=0).sqrt()
    return cross_L / norm_L
