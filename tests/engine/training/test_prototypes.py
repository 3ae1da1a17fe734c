"""Heads of class prototypes against the same in NumPy, and as the first head of a base model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from grids import CLASSES, Grid, grid, labels
from torch import nn

from engine.errors import DivergedError, RecipeError
from engine.machine.files import cache_folder
from engine.methods.objectives import Prototypes
from engine.models import checkpoints
from engine.store.cells import Cell
from engine.training import prototypes

__all__ = ["grid"]
PROTOTYPE = "model.head.kind=prototype"


def restated(x: np.ndarray, y: np.ndarray, classes: int, scale: float) -> tuple[np.ndarray, float]:
    """Weights [C, D] and the mean norm, class by class and image by image."""
    norm = float(np.mean([np.sqrt((row**2).sum()) for row in x]))
    weights = []
    for label in range(classes):
        units = [row / max(np.sqrt((row**2).sum()), 1e-12) for row in x[y == label]]
        mean = np.mean(units, axis=0)
        weights.append(mean / max(np.sqrt((mean**2).sum()), 1e-12) * scale / norm)
    return np.stack(weights), norm


@pytest.mark.parametrize(
    ("images", "width", "classes", "scale"), [(1, 1, 1, 1.0), (9, 4, 3, 100), (70, 33, 7, 0.5)]
)
def test_a_head_is_that_of_the_formula(images, width, classes, scale, monkeypatch):
    generator = torch.Generator().manual_seed(images)
    x = 5 * torch.randn(images + 3, width, generator=generator)
    x[-1], x[0] = torch.nan, 0 if images > 1 else x[0]  # an image without features, one left out
    y = torch.arange(images + 3) % classes
    rows = torch.arange(images)
    head = nn.Linear(width, classes)
    result = prototypes.fit(head, Prototypes(x, y, rows, scale), "LP")
    expected, norm = restated(x[rows].double().numpy(), y[rows].numpy(), classes, scale)
    np.testing.assert_allclose(head.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not head.bias.any()
    assert result == {"images": images, "norm": pytest.approx(norm)}
    monkeypatch.setattr(prototypes, "_CHUNK", 4)
    again = nn.Linear(width, classes)
    prototypes.fit(again, Prototypes(x, y, rows, scale), "LP")
    torch.testing.assert_close(again.weight, head.weight)


def test_unit_features_get_their_cosines():
    """A CLIP tower's features have length 1, so its logits are cosines times the scale."""
    x = nn.functional.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))
    y = torch.arange(12) % 4
    head = nn.Linear(6, 4)
    prototypes.fit(head, Prototypes(x, y, torch.arange(12), 20), "LP")
    means = torch.stack([x[y == label].mean(dim=0) for label in range(4)])
    cosines = nn.functional.cosine_similarity(x[:, None], means[None], dim=2)
    torch.testing.assert_close(head(x), cosines * 20, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("value", "norm"), [(torch.nan, "nan"), (torch.inf, "inf"), (0, "0.0")])
def test_features_without_a_direction_are_refused(value, norm):
    x = torch.full((4, 3), float(value))
    problem = Prototypes(x, torch.arange(4) % 2, torch.arange(4), 100)
    with pytest.raises(DivergedError, match=rf"P on few: the mean norm of the features is {norm}"):
        prototypes.fit(nn.Linear(3, 2), problem, "P on few")


def test_a_base_model_has_the_prototypes_of_the_upstream_training_images(grid: Grid):
    builder = grid.builder(PROTOTYPE, "model.head.scale=10", "dataset.shots=1")
    base = builder.base
    assert base.name.startswith("prototype-upstream-")
    index = builder.upstream.split("train")
    model = builder.recipe.model
    backbone = Cell(checkpoints.backbone(model, builder.store, cache_folder(), 0))
    x = builder.features(backbone, builder.upstream, training=True)[index].double().numpy()
    expected, norm = restated(x, labels(grid, "upstream", index).numpy(), len(CLASSES), 10)
    state = base.state()
    np.testing.assert_allclose(state["head.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not state["head.bias"].any()
    (history,) = json.loads((base.artifact.folder / "history.json").read_text())
    assert history == {"images": len(index), "norm": pytest.approx(norm)}
    assert base.backbone == backbone.name, "the backbone is not copied"


def test_the_head_is_part_of_every_name_and_the_probe_is_what_it_was(grid: Grid):
    probe, prototype, sharp = (
        grid.builder(*words) for words in ((), (PROTOTYPE,), (PROTOTYPE, "model.head.scale=50"))
    )
    names = [builder.base.name for builder in (probe, prototype, sharp)]
    assert len(set(names)) == 3 and names[0].startswith("linear_probe-upstream-")
    assert probe.key() != prototype.key() != sharp.key()
    assert grid.builder("model.head.scale=50").base.name == names[0]


def test_fine_tuning_starts_from_the_prototypes(grid: Grid):
    builder, cell = grid.build(PROTOTYPE, "method=linear_probe", "method.l2=1e6")
    before, after = builder.base.state(), cell.state()
    for name in ("head.weight", "head.bias"):  # so strong a pull leaves the head where it was
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5)
    assert cell.backbone == builder.base.backbone


def test_a_class_without_an_upstream_image_has_no_prototype(grid: Grid):
    file = grid.folder / "prototype.yaml"
    file.write_text("name: prototype\ntitle: P\nmodule: prototype\n")
    builder = grid.builder("downstream=few", f"method={file}")
    with pytest.raises(ValueError, match=r"2 of the head's classes have no training image in few"):
        builder.build()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((PROTOTYPE, "model.head.fit=false"), r"model\.head\.fit=true to make another"),
        (("model.head.kind=text",), r"model\.head\.kind='text' is not possible"),
        (("model.head.scale=0",), r"model\.head\.scale=0\.0 must be above 0"),
    ],
)
def test_impossible_heads_are_refused(grid: Grid, words, message):
    with pytest.raises(RecipeError, match=message):
        grid.builder(*words)
