"""Eleven interpolated models on a folder of photos in one pass, against a pass a model.

The peer is how WiSE-FT curves are made: for each of 11 alphas, merge on the CPU, open a loader, run
over the whole set. Our pass encodes a pack first.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench import photos
from bench.contest import Contest, Entrant, Scale
from engine import models
from engine.data.sets import Sets
from engine.evaluation import passes, user_models
from engine.machine import memory, precision
from engine.machine.files import cache_folder
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Store
from engine.store.cells import Mix
from loaders import folders, trees

ALPHAS = [k / 10 for k in range(11)]


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    if device.type == "cuda" and not scale.quick:
        arch, size, count = "vit_base_patch16_224", 224, 2048
    else:
        arch, size, count = "test_vit", 32, 8 if scale.quick else 960
    with _bench(arch, size, count, device, scale.draws) as bench:
        peer = Entrant("a pass each", bench.a_pass_each, count)
        subject = Entrant("one pass", bench.one_pass, count)
        name = f"{len(ALPHAS)} alphas, {arch}, files of {count}"
        yield Contest(name, subject, (peer,), bench.check, rounds=2)


class _Files(Dataset):
    """The photos as users read them: opened, resized and cropped every time; uint8 [3, H, W]."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.paths = [item.payload for item in folders.read(folder).items]
        self.transform = models.transform(recipe.model)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        pixels = self.transform(trees.open_image(self.paths[number]))
        return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass
class _Bench:
    """Photos as files, two checkpoints of a model, and the engine."""

    folder: Path
    recipe: Recipe
    device: torch.device
    checkpoints: list[Path]

    def __post_init__(self) -> None:
        self.store = Store(Path(self.recipe.runs) / "store")
        cell_of = user_models.cell_of
        self.cells = [cell_of(self.recipe.model, self.store, file) for file in self.checkpoints]
        first, second = (cell.name for cell in self.cells)
        self.mixes: list[Mix] = [{first: 1 - alpha, second: alpha} for alpha in ALPHAS]
        self.net: nn.Module = models.create(self.recipe.model, photos.CLASSES).to(self.device)
        self.net.eval()

    def one_pass(self) -> Run:
        """All alphas by the engine, which has seen nothing yet."""
        for seen in (self.store.root / "predictions", self.folder / "pack"):
            shutil.rmtree(seen, ignore_errors=True)
        files = self.folder / "files"
        pack = photos.encode(self.folder / "pack", files, self.recipe.model, "raw")
        sets = Sets(self.recipe, self.device, cache_folder(), {"set": pack}, pack.classes)
        run = Run(self.recipe, self.device, sets, self.store, self.cells[0], False)
        passes.evaluate(run, self.mixes, ["set"], "all")
        return run

    @torch.no_grad()
    def a_pass_each(self) -> list[Tensor]:
        """top-1 [N] for each alpha, merged on the CPU, with a loader of its own."""
        normalize = models.Normalize(self.recipe.model, self.device)
        first, second = (load_file(file) for file in self.checkpoints)
        answers = []
        for alpha in ALPHAS:
            state = {name: (1 - alpha) * first[name] + alpha * second[name] for name in first}
            self.net.load_state_dict(state)
            with precision.autocast("auto", self.device):
                top1 = [self.net(normalize(x)).argmax(1) for x in self._read()]
            answers.append(torch.cat(top1).cpu())
        return answers

    def _read(self) -> Iterator[Tensor]:
        """uint8 batches [B, 3, H, W] on the device, by a loader made now."""
        files = _Files(self.folder / "files", self.recipe)
        loader = DataLoader(files, self.recipe.evaluate.batch_size, num_workers=1)
        return (x.to(self.device) for x in loader)

    def check(self) -> None:
        """Both give the same answers."""
        run = self.one_pass()
        for mix, top1 in zip(self.mixes, self.a_pass_each(), strict=True):
            stored = pq.read_table(passes.predicted(run, mix, "set", "all"))["top1"].to_numpy()
            assert np.array_equal(stored, top1.numpy()), f"other answers at {mix}"


@contextlib.contextmanager
def _bench(arch: str, size: int, count: int, device: torch.device, drawn: bool) -> Iterator[_Bench]:
    """A benchmark in a temporary folder, with random weights: times do not depend on them."""
    memory.keep_pages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "files", count, drawn)
        words = [f"model.image_size={size}", f"evaluate.batch_size={min(64, count)}"]
        recipe = user_models.resolve(arch, [*words, f"runs={folder / 'runs'}", "source=resident"])
        torch.manual_seed(0)
        checkpoints = [folder / f"{name}.safetensors" for name in ("first", "second")]
        for file in checkpoints:
            save_file(models.create(recipe.model, photos.CLASSES).state_dict(), file)
        yield _Bench(folder, recipe, device, checkpoints)
