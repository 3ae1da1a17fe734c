"""A bank of models in one pass over a set, against a pass a model.

The peer is how WiSE-FT curves are made: for each of 11 alphas, merge on the CPU, open a new loader,
run over the whole set. Reading alone and the forward passes alone stand beside it: a pass can be no
faster than the slower of the two. From a folder of photos our pass encodes a pack first. Ten heads
on one backbone are set against ten passes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench import photos
from bench.contest import Contest, Entrant, Load, Scale
from engine import models
from engine.data.sets import Sets
from engine.evaluation import passes, user_models
from engine.machine import memory, precision
from engine.machine.files import cache_folder
from engine.recipe.schema import ModelRecipe, Recipe
from engine.run import Run
from engine.store import tensors
from engine.store.artifacts import Store
from engine.store.cells import CELL, Cell, Mix
from loaders.pack import Pack
from loaders.stream import open_source

KERNELS = ("interpolation",)
ALPHAS = [k / 10 for k in range(11)]
PROBES = 10
READERS = 2  # threads of a stream, as the engine has them
ROUNDS = 2
SOURCES = {"files": "resident", "jpeg": "stream", "raw": "resident"}


def gate(device: torch.device) -> None:
    """One pass predicts what a pass a model predicts, from every kind of storage; probes too."""
    for storage in ("files", "jpeg", "raw"):
        with _bench("test_vit", 32, 8, storage, device, drawn=True) as bench:
            run = bench.one_pass()
            for mix, top1 in zip(bench.mixes, bench.a_pass_each(), strict=True):
                assert torch.equal(bench.stored(run, mix), top1), storage
    with _bench("test_vit", 32, 8, "raw", device, drawn=True) as bench:
        probes = bench.probes()
        shared, each = bench.shared_backbone(probes), bench.a_pass_a_probe(probes)
        for cell in probes:
            same = bench.stored(shared, {cell.name: 1.0}), bench.stored(each, {cell.name: 1.0})
            assert torch.equal(*same), "probes of a shared backbone"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    big = device.type == "cuda"
    vit = "vit_base_patch16_224" if big else "vit_tiny_patch16_224"
    for arch, size, count, storage in (
        ("test_vit", 32, 2000 if big else 960, "files"),
        ("mobilenetv3_small_050", 224, 4096 if big else 512, "jpeg"),
        (vit, 224, 2048 if big else 128, "raw"),
    ):
        if scale.quick:
            arch, size, count = "test_vit", 32, 8
        with _bench(arch, size, count, storage, device, drawn=scale.draws) as bench:
            yield _alphas(bench)
    arch, size, count = ("test_vit", 32, 8) if scale.quick else (vit, 224, 2048 if big else 32)
    with _bench(arch, size, count, "raw", device, drawn=scale.draws) as bench:
        yield _probes(bench)


def _alphas(bench: Bench) -> Contest:
    count, load = len(ALPHAS), Load(len(bench.pack))
    forwards = partial(bench.forwards, [bench.net] * count)
    return Contest(
        f"{count} alphas {bench.storage} {len(bench.pack)}",
        Entrant("one pass", bench.one_pass, load=load),
        (
            Entrant("a pass each", bench.a_pass_each, load=load),
            Entrant("reading alone", bench.reading, load=load),
            Entrant(f"{count} forwards alone", forwards, load=load),
        ),
        rounds=ROUNDS,
    )


def _probes(bench: Bench) -> Contest:
    probes = bench.probes()
    return Contest(
        f"{PROBES} probes x {len(bench.pack)}",
        Entrant("one backbone", lambda: bench.shared_backbone(probes)),
        (Entrant(f"{PROBES} passes", lambda: bench.a_pass_a_probe(probes)),),
        rounds=ROUNDS,
    )


@dataclass
class Bench:
    """Photos as files and as a pack, two checkpoints of a model, and the engine."""

    folder: Path
    storage: str
    recipe: Recipe
    device: torch.device
    files: list[Path]

    @cached_property
    def store(self) -> Store:
        return Store(Path(self.recipe.runs) / "store")

    def encode(self, name: str) -> Pack:
        """The files as a pack, written now."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        kind = "jpeg" if self.storage == "jpeg" else "raw"
        return photos.encode(self.folder / name, self.folder / "files", self.model, kind)

    @cached_property
    def pack(self) -> Pack:
        return self.encode("pack")

    @property
    def model(self) -> ModelRecipe:
        return self.recipe.model

    @cached_property
    def base(self) -> Cell:
        return self.cell(self.files[0])

    def cell(self, file: Path) -> Cell:
        return user_models.cell_of(self.model, self.store, file)

    def on(self, pack: Pack, *, shares_features: bool = False) -> Run:
        """The engine with a set just opened."""
        sets = Sets(self.recipe, self.device, cache_folder(), {"set": pack}, pack.classes)
        return Run(self.recipe, self.device, sets, self.store, self.base, shares_features)

    @cached_property
    def parents(self) -> dict[str, Cell]:
        cells = [self.cell(file) for file in self.files]
        return {cell.name: cell for cell in cells}

    @property
    def mixes(self) -> list[Mix]:
        first, second = self.parents
        return [{first: 1 - alpha, second: alpha} for alpha in ALPHAS]

    def merged(self) -> Iterator[None]:
        """Each alpha's weights in the model, by turns: merged on the CPU."""
        first, second = (load_file(file) for file in self.files)
        for alpha in ALPHAS:
            state = {name: (1 - alpha) * first[name] + alpha * second[name] for name in first}
            self.net.load_state_dict(state)
            yield

    def one_pass(self) -> Run:
        """All alphas by the engine, which has seen nothing yet; from files, encoded too."""
        self.forget("predictions")
        run = self.on(self.encode("again") if self.storage == "files" else self.pack)
        passes.evaluate(run, self.mixes, ["set"], "all")
        return run

    def a_pass_each(self) -> list[Tensor]:
        """top-1 [N] for each alpha, with a loader of its own."""
        return [self._top1() for _ in self.merged()]

    @torch.no_grad()
    def _top1(self) -> Tensor:
        normalize = models.Normalize(self.model, self.device)
        with precision.autocast("auto", self.device):
            return torch.cat([self.net(normalize(x)).argmax(1) for x in self.read()]).cpu()

    def read(self) -> Iterator[Tensor]:
        """uint8 batches [B, 3, H, W] on the device, by a loader made now."""
        size = self.recipe.evaluate.batch_size
        if self.storage == "files":
            data = photos.Files(self.folder / "files", self.model)
            for batch in DataLoader(data, size, num_workers=1):
                yield batch.to(self.device)
            return
        mode = SOURCES[self.storage]
        source = open_source(self.pack, self.device, mode, workers=READERS)  # type: ignore[arg-type]
        order = np.arange(len(self.pack))
        for batch in source.batches(order[i : i + size] for i in range(0, len(order), size)):
            yield batch.images

    def reading(self) -> None:
        for _ in self.read():
            pass
        self._wait()

    @torch.no_grad()
    def forwards(self, models: Sequence[nn.Module]) -> None:
        """Passes of models over normalised images in memory."""
        with precision.autocast("auto", self.device):
            for model in models:
                for x in self.normalised:
                    model(x)
        self._wait()

    @cached_property
    def net(self) -> nn.Module:
        return models.create(self.model, photos.CLASSES).to(self.device).eval()

    @cached_property
    def normalised(self) -> list[Tensor]:
        normalize = models.Normalize(self.model, self.device)
        return [normalize(pixels) for pixels in self.read()]

    def probes(self) -> list[Cell]:
        """Heads of their own on the first checkpoint's backbone."""
        base = self.base
        names = models.head_names(self.net)
        cells = []
        for seed in range(PROBES):
            state, generator = base.state(), torch.Generator().manual_seed(seed)
            state |= {k: torch.randn(state[k].shape, generator=generator) for k in names}
            meta = json.dumps({"backbone": base.name})

            def build(folder: Path, state: dict = state, meta: str = meta) -> None:
                tensors.save(state, folder / tensors.WEIGHTS)
                (folder / CELL).write_text(meta)

            cells.append(Cell(self.store.make("cells", "probe", {"seed": seed}, build)))
        return cells

    def shared_backbone(self, probes: list[Cell]) -> Run:
        """All probes at once, as a campaign evaluates those of its base model."""
        self.forget("predictions", "features")
        run = self.on(self.pack, shares_features=True)
        passes.evaluate(run, [{cell.name: 1.0} for cell in probes], ["set"], "all")
        return run

    def a_pass_a_probe(self, probes: list[Cell]) -> Run:
        self.forget("predictions")
        for cell in probes:
            passes.evaluate(self.on(self.pack), [{cell.name: 1.0}], ["set"], "all")
        return self.on(self.pack)

    def stored(self, run: Run, mix: Mix) -> Tensor:
        """top-1 [N] in the store."""
        table = pq.read_table(passes.predicted(run, mix, "set", "all"))
        return torch.from_numpy(table["top1"].to_numpy().copy())

    def forget(self, *kinds: str) -> None:
        for kind in kinds:
            shutil.rmtree(self.store.root / kind, ignore_errors=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def _bench(
    arch: str, size: int, count: int, storage: str, device: torch.device, *, drawn: bool
) -> Iterator[Bench]:
    """A benchmark in a temporary folder, with random weights: times do not depend on them."""
    if device.type == "cpu":
        memory.keep_pages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder / "files", count, drawn)
        batch = min(256 if size == 32 else 64, count)
        words = [f"model.image_size={size}", f"evaluate.batch_size={batch}"]
        words += [f"runs={folder / 'runs'}", f"source={SOURCES[storage]}"]
        recipe = user_models.resolve(arch, words)
        torch.manual_seed(0)
        files = [folder / f"{name}.safetensors" for name in ("first", "second")]
        for file in files:
            save_file(models.create(recipe.model, photos.CLASSES).state_dict(), file)
        yield Bench(folder, storage, recipe, device, files)
