"""Eleven interpolated models on a folder of photos in one pass, against a pass a model.

The peer is how WiSE-FT curves are made: for each of 11 alphas, merge on the CPU, open a loader, run
over the whole set. Our pass encodes a pack first. Weights are random: times do not depend on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from bench import photos
from bench.contest import Contest, Entrant, Scale
from engine import models
from engine.data.sets import Sets
from engine.evaluation import passes
from engine.exchange import user_models
from engine.machine.devices import keep_pages
from engine.machine.files import cache_folder
from engine.machine.precision import autocast, no_tf32
from engine.recipe import image_transform
from engine.recipe.overrides import parsed
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Store
from engine.store.cells import Mix
from loaders.files.root import Root

ALPHAS = [k / 10 for k in range(11)]
TIES = 1e-3  # of the answers


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    if device.type == "cuda" and not scale.quick:
        # The peer decodes each image 11 times, in four runs, of 2.8 ms a decode: 16 s.
        arch, size, count = "vit_base_patch16_224", 224, 128
    else:
        arch, size, count = "test_vit", 32, 8 if scale.quick else 960
    keep_pages()
    no_tf32()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "files", count, scale.draws)
        words = [f"model.image_size={size}", f"evaluate.batch_size={min(64, count)}"]
        words += [f"runs={folder / 'runs'}", "loader=resident"]
        # On a GPU ours is compiled, and bf16's rounding decides between answers that are near.
        precise = [*words, "evaluate.precision=fp32", "evaluate.compile=never"]
        recipe, exact = (user_models.resolve(arch, parsed(each)) for each in (words, precise))
        yield _contest(folder, recipe, exact, device, count)


def _contest(
    folder: Path, recipe: Recipe, exact: Recipe, device: torch.device, count: int
) -> Contest:
    """Times the recipe. exact: that in which both give the same answers."""
    torch.manual_seed(0)
    store, net = Store(folder / "runs" / "store"), models.create(recipe.model, photos.CLASSES)
    checkpoints = [folder / f"{number}.safetensors" for number in range(2)]
    for file in checkpoints:
        save_file(models.create(recipe.model, photos.CLASSES).state_dict(), file)
    cells = [user_models.cell_of(recipe, store, file) for file in checkpoints]
    mixes: list[Mix] = [{cells[0].name: 1 - a, cells[1].name: a} for a in ALPHAS]
    net.to(device).eval()
    transform, normalize = (
        image_transform.transform(recipe.model),
        models.Normalize(recipe.model, device),
    )

    def one_pass(recipe: Recipe = recipe) -> Run:
        """All alphas by the engine, which has seen nothing yet."""
        store.files.remove("predictions")
        Root(folder).remove("pack")
        pack = photos.encode(folder / "pack", folder / "files", recipe.model, "raw")
        sets = Sets(recipe, device, cache_folder(), {"set": pack}, pack.classes)
        run = Run(recipe, device, sets, store, cells[0], shares_features=False)
        passes.evaluate(run, mixes, ["set"], "all")
        return run

    def pixels(image: Image.Image) -> Tensor:
        return torch.from_numpy(transform(image)).permute(2, 0, 1)

    @torch.no_grad()
    def a_pass_each(precision: str = "auto") -> list[Tensor]:
        """top-1 [N] for each alpha, merged on the CPU, with a loader of its own."""
        first, second = (load_file(file) for file in checkpoints)
        answers = []
        for alpha in ALPHAS:
            net.load_state_dict({k: (1 - alpha) * first[k] + alpha * second[k] for k in first})
            files = ImageFolder(str(folder / "files"), pixels)
            loader = DataLoader(files, recipe.evaluate.batch_size, num_workers=1)
            with autocast(precision, device):
                top1 = [net(normalize(x.to(device))).argmax(1) for x, _ in loader]
            answers.append(torch.cat(top1).cpu())
        return answers

    def check() -> None:
        """Both give the same answers, but for ties."""
        run = one_pass(exact)
        for mix, top1 in zip(mixes, a_pass_each("fp32"), strict=True):
            stored = pq.read_table(passes.predicted(run, mix, "set", "all"))["top1"].to_numpy()
            others = np.mean(stored != top1.numpy())
            assert others <= TIES, f"{others:.2%} other answers at {mix}"

    name = f"{len(ALPHAS)} alphas, {recipe.model.arch}, files of {count}"
    peer = Entrant("a pass each", a_pass_each, count)
    return Contest(name, Entrant("one pass", one_pass, count), (peer,), check, rounds=2)
