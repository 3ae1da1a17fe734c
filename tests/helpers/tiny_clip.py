"""A CLIP that is small enough to draw, as a model of open_clip's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engine.recipe.methods import METHODS
from helpers.grids import CLASSES, SIZE, Grid, labels, listing
from helpers.twins import assert_near

NAME = "tiny-clip"
ARCH = f"open_clip:{NAME}"
TEMPLATES = ["a photo of a {}.", "a {}."]
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """open_clip, which knows the model."""
    package = pytest.importorskip("open_clip", reason="the extra [clip]")
    monkeypatch.setitem(package.factory._MODEL_CONFIGS, NAME, CONFIG)
    return package


@pytest.fixture
def clip_words(grid: Grid, open_clip: ModuleType, tmp_path: Path) -> list[str]:
    """Words that choose FLYP on the tiny CLIP, whose weights are in a file."""
    save_file(drawn(open_clip).state_dict(), tmp_path / "clip.safetensors")
    return [
        "method=flyp",
        f"model.arch={ARCH}",
        "model.weights.source=open_clip",
        f"model.weights.clip={NAME}",
        f"model.weights.path={tmp_path / 'clip.safetensors'}",
        "model.head.fit=false",
    ]


def drawn(package: ModuleType, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return package.create_model(NAME, load_weights=False).eval()


def pixels(package: ModuleType, grid: Grid, index: Sequence[int]) -> torch.Tensor:
    """float64 [b, 3, 32, 32]: outlined shapes as the model must see them."""
    files = [listing(grid, "outline")[i][0] for i in index]
    raw = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    x = (raw - np.array(package.OPENAI_DATASET_MEAN)) / np.array(package.OPENAI_DATASET_STD)
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def head(
    package: ModuleType,
    model: torch.nn.Module,
    words: Sequence[str] = CLASSES,
    templates: Sequence[str] = TEMPLATES[:1],
) -> torch.Tensor:
    """The zero-shot head [E, C], which is open_clip's, times the scale of its logits."""
    tokenizer = package.get_tokenizer(NAME)
    head_EC = package.build_zero_shot_classifier(model, tokenizer, words, templates)
    return model.logit_scale.detach().exp() * head_EC


@dataclass
class Beside:
    """A method whose parameters moved, with a batch; open_clip's model before and after, float64.

    parameters: the method's, by the names of open_clip's.
    """

    method: Any
    batch: Any
    x: torch.Tensor
    y: torch.Tensor
    tokens: torch.Tensor
    before: Any
    after: Any
    parameters: dict[str, torch.Tensor]

    def embedded(self, model: Any) -> tuple[torch.Tensor, ...]:
        """Unit embeddings of the images and of their captions, and the scale of their products."""
        image = model.encode_image(self.x, normalize=True)
        return image, model.encode_text(self.tokens, normalize=True), model.logit_scale.exp()

    def check(self, expected: torch.Tensor, rtol: float = 2e-3, atol: float = 1e-5) -> None:
        """The method's mean loss, and its gradients to these tolerances."""
        loss = self.method(self.batch).mean()
        assert_near(loss, expected, rtol=1e-4, atol=1e-5)
        loss.backward()
        expected.backward()
        for name, mine in self.parameters.items():
            gradient = self.after.get_parameter(name).grad
            mine = mine.grad.reshape(gradient.shape)
            assert_near(mine, gradient, rtol=rtol, atol=atol, name=name)


def beside(grid: Grid, package: ModuleType, words: Sequence[str], *, text: bool = True) -> Beside:
    """A method that trains both towers, or with text=False the vision tower alone."""
    builder, index = grid.builder(*words), [0, 9, 4]
    method = METHODS.find(builder.recipe.method.module).Method(builder.recipe.method)
    method.prepare(builder.network(builder.base), builder)
    method.train()
    (batch,) = builder.sets.source("outline").batches([np.array(index)])
    x, y = pixels(package, grid, index), labels(grid, "outline", np.array(index))
    captions = [TEMPLATES[0].format(CLASSES[label]) for label in y.tolist()]
    before, after = (drawn(package).double() for _ in range(2))
    parameters = {f"visual.{n}": p for n, p in method.net.visual.named_parameters()}
    if text:
        parameters |= dict(method.text.named_parameters()) | {"logit_scale": method.log_scale_1}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, mine in parameters.items():
            theirs = after.get_parameter(name)
            change = 0.02 * torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
            theirs += change
            mine += change.reshape(mine.shape).float()
    tokens = package.get_tokenizer(NAME)(captions)
    return Beside(method, batch, x, y, tokens, before, after, parameters)
