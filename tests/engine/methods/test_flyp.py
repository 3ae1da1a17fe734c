"""FLYP against open_clip's own model, loss and zero-shot head, on a CLIP that the test draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grids import CLASSES, SIZE, Grid, grid, labels, listing, prepared, weights
from PIL import Image
from safetensors.torch import save_file

from engine.errors import RecipeError
from engine.machine import ranks
from engine.methods import flyp

__all__ = ["grid"]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip
TEMPLATES = [lambda name: f"a photo of a {name}.", lambda name: f"a {name}."]


@pytest.fixture
def words(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words that choose FLYP on the tiny CLIP, whose weights are in a file."""
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip", TINY)
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", list(CLASSES))
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", TEMPLATES[:1])
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-clip", load_weights=False).state_dict()
    save_file(state, tmp_path / "clip.safetensors")
    return [
        "method=flyp",
        "model.arch=open_clip:tiny-clip",
        "model.weights.source=open_clip",
        "model.weights.clip=tiny-clip",
        f"model.weights.path={tmp_path / 'clip.safetensors'}",
        "model.head.fit=false",
    ]


def plain_clip(words: list[str]) -> Any:
    """open_clip's model with the file's weights, in float64."""
    import open_clip
    from safetensors.torch import load_file

    model = open_clip.create_model("tiny-clip", load_weights=False).eval()
    model.load_state_dict(load_file(words[4].partition("=")[2]))
    return model.double()


def plain_loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """open_clip's contrastive loss, the mean over the batch."""
    import open_clip

    sentences = [TEMPLATES[0](CLASSES[label]) for label in y.tolist()]
    tokens = open_clip.get_tokenizer("tiny-clip")(sentences)
    features = model.encode_image(x, normalize=True), model.encode_text(tokens, normalize=True)
    return open_clip.ClipLoss()(*features, model.logit_scale.exp())


def pixels(grid: Grid, index: np.ndarray) -> torch.Tensor:
    import open_clip

    files = [listing(grid, "outline")[i][0] for i in index]
    raw = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    x = (raw - np.array(open_clip.OPENAI_DATASET_MEAN)) / np.array(open_clip.OPENAI_DATASET_STD)
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def batch_of(grid: Grid, words: list[str], index: list[int]) -> tuple[flyp.Method, Any]:
    builder = grid.builder(*words)
    method = flyp.Method(builder.recipe.method)
    method.prepare(builder.network(builder.base), builder)
    method.train()
    (batch,) = builder.sets.source("outline").batches([np.array(index)])
    return method, batch


def test_the_loss_and_its_gradients_are_open_clips(grid, words):
    index = [0, 9, 4, 16, 20, 1]  # the first and the last are of one class
    method, batch = batch_of(grid, words, index)
    model = plain_clip(words)
    expected = plain_loss(model, pixels(grid, np.array(index)), labels(grid, "outline", index))
    losses_B = method(batch)
    assert losses_B.shape == (6,)
    torch.testing.assert_close(losses_B.mean().double(), expected, rtol=1e-5, atol=1e-6)
    losses_B.mean().backward()
    expected.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    gradients["text.logit_scale"] = gradients.pop("log_scale_1")[0]
    for name, parameter in model.named_parameters():
        prefix = "net." if name.startswith("visual.") else "text."
        gradient = gradients.pop(prefix + name)
        torch.testing.assert_close(
            gradient.double(), parameter.grad, rtol=1e-3, atol=1e-6, msg=name
        )
    assert not gradients  # not the head, which is made anew
    assert model.logit_scale.grad.abs() > 1e-4


def test_a_cell_is_the_tuned_tower_under_the_head_of_the_tuned_text_tower(grid, words):
    """Full-batch steps of a bare loop, then open_clip's own zero-shot classifier."""
    import open_clip

    steps, lr = 3, 1e-3
    words = [*words, "optimizer.name=adamw", f"optimizer.lr={lr}", "optimizer.eps=1e-3"]
    words += [f"train.epochs={steps}", "train.batch_size=25", "train.warmup_steps=0"]
    builder, cell = grid.build(*words)
    index = builder.target.split("train")
    x, y = pixels(grid, index), labels(grid, "outline", index)
    model = plain_clip(words)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    descent = torch.optim.AdamW(model.parameters(), eps=1e-3, weight_decay=0)
    for step in range(steps):
        descent.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        descent.zero_grad()
        plain_loss(model, x, y).backward()
        descent.step()
    trained = weights(cell)
    for name, parameter in model.visual.named_parameters():
        expected = parameter.detach() - start[f"visual.{name}"]
        actual = trained[f"visual.{name}"].double() - start[f"visual.{name}"]
        assert (actual - expected).norm() <= 2e-3 * expected.norm() + 1e-6, name
    with torch.no_grad():
        head_EC = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer("tiny-clip"), CLASSES, TEMPLATES[:1]
        )
        expected_CE = (model.logit_scale.exp() * head_EC).T
    torch.testing.assert_close(trained["head.weight"].double(), expected_CE, rtol=1e-3, atol=1e-3)
    assert not trained["head.bias"].any()
    before = builder.base.state()["head.weight"]
    assert (trained["head.weight"] - before).norm() > 0.01 * before.norm()


def test_templates_and_names_are_drawn_from_all_of_a_class(grid, words, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", TEMPLATES)
    method, batch = batch_of(grid, words, [0] * 5)
    torch.manual_seed(1)
    drawn = [sentence for _ in range(20) for sentence in method.captions(batch.index)]
    assert set(drawn) == {"a photo of a bar.", "a bar."}
    torch.manual_seed(1)
    assert method.captions(batch.index) == drawn[:5]
    method.outputs = {0: [0, 2]}  # a class that stands for two of the head's
    drawn = [sentence for _ in range(40) for sentence in method.captions(batch.index)]
    assert set(drawn) == {t(name) for t in TEMPLATES for name in ("bar", "disc")}


def test_an_export_during_training_leaves_the_method_as_it_is(grid, words, monkeypatch):
    method, batch = batch_of(grid, words, [0, 9, 4])
    names = [name for name, _ in method.named_parameters()]
    before = method(batch)

    def refuse(device: object) -> None:
        raise AssertionError(f"the towers go to {device}")

    monkeypatch.setattr(method.text, "to", refuse)
    method.export()
    assert method.text.training and [name for name, _ in method.named_parameters()] == names
    assert torch.equal(method(batch), before)


def test_other_models_ranks_and_accumulation_are_refused(grid, words, monkeypatch):
    with pytest.raises(RecipeError, match=r"text tower, and the model vit_tiny_random has none"):
        grid.builder("method=flyp")
    with pytest.raises(RecipeError, match=r"train\.accumulation=2: FLYP contrasts all images"):
        grid.builder(*words, "train.accumulation=2")
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ValueError, match="it trains on one rank"):
        prepared(grid, *words)
