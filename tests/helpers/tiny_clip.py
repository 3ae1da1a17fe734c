"""A CLIP that is small enough to draw, as a model of open_clip's."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.grids import CLASSES, SIZE, Grid, listing

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
