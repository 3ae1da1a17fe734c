"""ImageNet-RIB's ten sets as tiny trees, encoded by the command, and a recipe over them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.recipe.overrides import parsed
from helpers import grids
from helpers import imagenet_trees as trees

RECIPE = """\
model: vit_tiny_random
dataset: {extends: imagenet_rib, test_only: []}
method: fine_tune
downstream: objectnet
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 1, batch_size: 4, warmup_steps: 0}
evaluate: {batch_size: 16}
"""
SUBSAMPLE = 100  # of 150
VAL = "ILSVRC2012_val_{i:08d}"


@dataclass(frozen=True)
class Rib:
    """Where the trees, the recipe file and the packs are."""

    folder: Path
    device: torch.device

    @property
    def words(self) -> tuple[str, ...]:
        model = (f"model.arch={grids.VIT}", "model.crop=1.0")
        return (f"runs={self.folder / 'runs'}", f"dataset.subsample={SUBSAMPLE}", *model)

    def encode(self, name: str, source: Path, *words: str) -> int:
        """Exit code of `rib encode`; name: a set, or --all."""
        options = ("--images", str(source), "--model", "vit_tiny_random")
        return cli.main(["encode", name, *options, *self.words, *words])

    def builder(self, *words: str) -> Builder:
        """The builder of the recipe's cell; `words` come last and win."""
        cell = plan_cell(str(self.folder / "rib.yaml"), parsed((*self.words, *words)))
        return Builder(cell, self.device)


@pytest.fixture(scope="module")
def rib(grid, tmp_path_factory) -> Iterator[Rib]:
    """All ten sets, encoded by the command."""
    folder = tmp_path_factory.mktemp("rib")
    (folder / "rib.yaml").write_text(RECIPE)
    encoded = Rib(folder, grid.device)
    sources = {
        "imagenet_val": trees.flat(folder / "val", "LOC_val_solution.csv"),
        "imagenet_train": trees.by_wnid(folder / "train", "t_{i}.JPEG", number=10),
        "imagenet_v2": trees.version_2(folder / "v2"),
        "imagenet_a": trees.by_wnid(folder / "a", number=11),
        "imagenet_r": trees.archive(trees.by_wnid(folder / "r", number=12), folder / "r.tar"),
        "imagenet_sketch": trees.by_wnid(folder / "s" / "sketch", number=13),
        "objectnet": trees.objectnet(folder / "o"),
        "imagenet_cartoon": trees.by_wnid(folder / "cartoon", f"{VAL}.JPEG", number=14),
        "imagenet_drawing": trees.by_wnid(folder / "drawing", f"{VAL}.png", number=15),
        "imagenet_c": trees.corrupted(folder / "c"),
    }
    for name, source in sources.items():
        assert encoded.encode(name, source, "--partial") == 0, name
    yield encoded
