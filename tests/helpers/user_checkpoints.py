"""A user's checkpoints beside the drawn sets, and the rows that `rib evaluate` makes of them."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from engine.exchange import user_models
from engine.recipe.overrides import parsed
from helpers.grids import CLASSES, SIZE, VIT, Grid


def checkpoint(path: Path, seed: int, arch: str = VIT, classes: int = len(CLASSES)) -> Path:
    """A file of random weights."""
    torch.manual_seed(seed)
    size = {"img_size": SIZE} if arch == VIT else {}
    save_file(timm.create_model(arch, num_classes=classes, **size).state_dict(), path)
    return path


@pytest.fixture
def user_grid(grid, tmp_path) -> Grid:
    """A copy of the sets, which may be altered, with two checkpoints A and B beside them."""
    folder = tmp_path / "shapes"
    shutil.copytree(grid.folder, folder)
    for seed, name in enumerate("AB"):
        checkpoint(folder / f"{name}.safetensors", seed)
    return Grid(folder, tmp_path / "runs", grid.device)


def rows(
    user_grid: Grid,
    models: str,
    sets: str,
    *words: str,
    arch: str = VIT,
    suffix: str = "safetensors",
    **options,
) -> list:
    """Rows of the models whose letters `models` holds, on sets of the folder; heads are those of
    the drawn classes unless `classes` says otherwise."""
    overrides = [f"runs={user_grid.runs}", f"model.image_size={SIZE}", "model.crop=1.0"]
    overrides += ["evaluate.batch_size=8", *words]
    files = [user_grid.folder / f"{name}.{suffix}" for name in models]
    places = {name: user_grid.folder / name for name in sets.split()}
    settings = user_models.resolve(arch, parsed(overrides))
    return user_models.evaluate(
        settings, files, places, user_grid.device, **{"classes": CLASSES} | options
    )
