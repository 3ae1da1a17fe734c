"""A benchmark of drawn shapes, small enough to train whole cells inside a test.

Four sets of 32 px images: `upstream`, `outline` and `tinted` with five classes, `few` with three of
them, so that its labels and its class mask differ from the head's. Images are stored at the model's
own size, so a test that reads a PNG knows the pixels that a model must see.
"""

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import nn

from engine.cells.build import Builder
from engine.cells.cell_plan import CellPlan
from engine.cells.plan_cell import plan_cell
from engine.machine import ranks
from engine.machine.terminal import quiet_libraries
from engine.methods.base import Trained
from engine.recipe.methods import METHODS
from engine.recipe.overrides import parsed
from engine.recipe.resolve import without_options
from engine.store.cells import Cell
from engine.training import loop
from helpers.shared import of_all, once
from loaders.batches import Batch

SIZE, COPIES = 32, 7  # of the copies of a class, two are held out
CLASSES = ("bar", "cross", "disc", "ring", "square")
FEW = ("cross", "ring", "square")
SETS = {"upstream": CLASSES, "outline": CLASSES, "tinted": CLASSES, "few": FEW}
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
UNFINISHED = shutil.ignore_patterns(".*")  # what other workers are making
VIT, CONV = "test_vit", "test_efficientnet"
RECIPE = """\
model: vit_tiny_random
dataset: folder
method: fine_tune
downstream: outline
optimizer: {name: sgd, lr: 0.02}
train: {epochs: 2, batch_size: 12, warmup_steps: 2, freeze_batchnorm: true}
evaluate: {batch_size: 8}
"""


class AnyMethod(dict):
    """The cells that a cell needs, and others of its column, which tests ask for beside them."""

    def __init__(self, needs: Mapping[str, CellPlan], load: Callable[..., CellPlan]) -> None:
        super().__init__(needs)
        self.load = load

    def __contains__(self, method: object) -> bool:
        return True

    def __missing__(self, method: str) -> CellPlan:
        return self.load(method=method)


@dataclass(frozen=True)
class Grid:
    """Where the drawings and the recipe file are, and where results go."""

    folder: Path
    runs: Path
    device: torch.device

    @property
    def recipe(self) -> str:
        return str(self.folder / "shapes.yaml")

    def overrides(self, *extra: str) -> tuple[str, ...]:
        """Command-line words that make the recipe file run here; `extra` comes last and wins."""
        return (
            f"runs={self.runs}",
            f"dataset.root={self.folder}",
            "dataset.sets=[outline,tinted,few]",
            f"model.arch={VIT}",
            "model.crop=1.0",
            *extra,
        )

    def builder(self, *extra: str) -> Builder:
        """The builder of the cell that these overrides describe."""
        given = parsed(self.overrides(*extra))
        cell = plan_cell(self.recipe, given)
        variant = parsed([{"method.variant": cell.recipe.method.variant}])
        shared = [*without_options(given), *variant]
        load = functools.partial(plan_cell, self.recipe, shared)
        plan = CellPlan(cell.recipe, AnyMethod(cell.needs, load))
        return Builder(plan, self.device)

    def build(self, *extra: str) -> tuple[Builder, Cell]:
        """That cell, trained now if it was not before."""
        builder = self.builder(*extra)
        return builder, builder.build()

    def elsewhere(self, runs: Path, *builders: Builder) -> "Grid":
        """The benchmark with another folder of results: of these builders it has all packs and the
        base models."""
        for builder in builders:
            for name in SETS:
                builder.sets[name]
            for name in (f"weights/{builder.base.backbone}", f"cells/{builder.base.name}"):
                place = Path("store") / name
                shutil.copytree(self.runs / place, runs / place, dirs_exist_ok=True)
        shutil.copytree(self.runs / "packs", runs / "packs", ignore=UNFINISHED)
        return Grid(self.folder, runs, self.device)


def draw(folder: Path) -> None:
    """Write all sets below `folder` as <set>/<class>/<copy>.png."""
    for number, (name, classes) in enumerate(SETS.items()):
        for label, shape in enumerate(classes):
            (folder / name / shape).mkdir(parents=True)
            for copy in range(COPIES):
                rng = np.random.default_rng([number, label, copy])
                drawing(shape, name, rng).save(folder / name / shape / f"{copy}.png")


def drawing(shape: str, style: str, rng: np.random.Generator) -> Image.Image:
    """One image of a shape: its place, size and colours vary, the style says how it is painted."""
    back, ink = (tuple(int(v) for v in rng.integers(*span, 3)) for span in ((150, 255), (0, 110)))
    image = Image.new("RGB", (SIZE, SIZE), back if style != "tinted" else (back[0], 90, 60))
    pen = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(11, 21, 2))
    r = int(rng.integers(7, 10))
    fill = None if style == "outline" else ink
    box = (x - r, y - r, x + r, y + r)
    if shape in ("disc", "ring"):
        pen.ellipse(box, fill=fill if shape == "disc" else None, outline=ink, width=2)
    elif shape == "square":
        pen.rectangle(box, fill=fill, outline=ink, width=2)
    else:
        pen.rectangle((x - r, y - 2, x + r, y + 2), fill=fill, outline=ink)
        if shape == "cross":
            pen.rectangle((x - 2, y - r, x + 2, y + r), fill=fill, outline=ink)
    return image


def listing(grid: Grid, name: str) -> list[tuple[Path, str]]:
    """Files of a set and their classes, in the order of its pack."""
    return [
        (path, shape)
        for shape in sorted(SETS[name])
        for path in sorted((grid.folder / name / shape).iterdir())
    ]


def images(grid: Grid, name: str, index: np.ndarray, arch: str = VIT) -> torch.Tensor:
    """float64 [b, 3, 32, 32]: the images as the model must see them, read without the engine."""
    config = timm.get_pretrained_cfg(arch)
    files = [listing(grid, name)[i][0] for i in index]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    x = (pixels / 255 - np.array(config.mean)) / np.array(config.std)
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def labels(grid: Grid, name: str, index: np.ndarray) -> torch.Tensor:
    """int64 [b]: places of the classes in the head, by name."""
    listed = listing(grid, name)
    return torch.tensor([CLASSES.index(listed[i][1]) for i in index])


def reference(state: dict[str, torch.Tensor], arch: str = VIT) -> nn.Module:
    """timm's model in float64 and eval mode, with a state dict that must fit exactly."""
    size = {"img_size": SIZE} if arch == VIT else {}
    net = timm.create_model(arch, num_classes=len(CLASSES), **size)
    net.load_state_dict(state, strict=True)
    return net.double().eval()


@dataclass(frozen=True)
class Prepared:
    """A method ready for its first batch, and the same facts without the engine."""

    builder: Builder
    method: Trained
    batch: Batch
    before: dict[str, torch.Tensor]
    net: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def prepared(grid: Grid, *extra: str, index: tuple[int, ...] = (0, 9, 4, 16, 20)) -> Prepared:
    """A method as `train.fit` prepares it, with a batch of the set it trains on."""
    builder = grid.builder(*extra)
    before = builder.base.state()
    torch.manual_seed(builder.recipe.seed)
    options = builder.recipe.method
    method = METHODS.find(options.module).Method(options)
    method.prepare(builder.network(builder.base), builder)
    method.train()
    name, arch = builder.recipe.downstream, builder.recipe.model.arch
    chosen = np.array(index)
    (batch,) = builder.sets.source(name).batches([chosen])
    net = reference(before, arch)
    x, y = images(grid, name, chosen, arch), labels(grid, name, chosen)
    return Prepared(builder, method, batch, before, net, x, y)


def trained(case: Prepared) -> list[dict[str, torch.Tensor]]:
    """Train it by its recipe; the network's weights after each step."""
    states, hook = [], case.method.after_step

    def after_step() -> None:
        hook()
        states.append({name: t.clone() for name, t in case.method.net.state_dict().items()})

    case.method.after_step = after_step
    with loop.initialized(case.method, case.builder) as engine:
        loop.epochs(engine, case.method, case.builder)
    return states


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    """The state dict that a cell has on disk."""
    return load_file(cell.artifact.folder / "weights.safetensors")


def distance(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two state dicts, all floating tensors taken as one vector."""
    assert actual.keys() == expected.keys()
    floating = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    a, b = (torch.cat([s[n].double().flatten() for n in floating]) for s in (actual, expected))
    return ((a - b).norm() / b.norm()).item()


def same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts agree bit for bit."""
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[n], expected[n]) for n in expected
    )


def environment() -> dict[str, str]:
    """For a child process: no rank of ours, one thread, no progress bars."""
    ours = {*RANK_VARIABLES, "GLOO_SOCKET_IFNAME"}
    variables = {name: value for name, value in os.environ.items() if name not in ours}
    return variables | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RIB_PROGRESS": "off"}


def torchrun(ranks: int, *words: str) -> list[str]:
    """Command that starts a script on several ranks of this machine."""
    launcher = "torch.distributed.run"
    return [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node", str(ranks), *words]


@functools.cache
def _drawn(base: Path) -> Path:
    def make(folder: Path) -> None:
        draw(folder)
        (folder / "shapes.yaml").write_text(RECIPE)

    return once(base / "shapes", make)


@functools.cache
def _started() -> tuple[torch.device, dict[str, str]]:
    """A process group of one for the whole session, since DeepSpeed cannot start a second one.

    Commands that end with `ranks.stop`, in any module, leave it as it is.
    """
    quiet_libraries()
    device = ranks.start("cpu")
    ranks.stop = lambda: None
    return device, {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Iterator[Grid]:
    """The benchmark on the CPU; all test modules and workers share its finished cells."""
    base = of_all(tmp_path_factory)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in RANK_VARIABLES:
            patch.delenv(name, raising=False)  # and gone again afterwards: children are no ranks
        device, variables = _started()
        torch.set_num_threads(1)
        for name, value in (variables | {"RIB_PROGRESS": "off"}).items():
            patch.setenv(name, value)
        yield Grid(_drawn(base), base / "runs", device)
    torch.set_num_threads(threads)
