"""TRACER beside open_clip's model in float64, on a CLIP that the test draws."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.methods.beyond import tracer
from helpers import tiny_clip
from helpers.grids import CLASSES, Grid, labels
from helpers.tiny_clip import TEMPLATES
from helpers.twins import assert_near

INDEX = [0, 9, 4]  # of images


@pytest.fixture
def method(grid: Grid, clip_words: list[str]) -> tuple[tracer.Method, Any]:
    """TRACER on the tiny CLIP, and a batch of images."""
    builder = grid.builder(*clip_words, "method=tracer")
    made = tracer.Method(builder.recipe.method)
    made.prepare(builder.network(builder.base), builder)
    made.train()
    (batch,) = builder.sets.source("outline").batches([np.array(INDEX)])
    return made, batch


@pytest.mark.parametrize("steps", [0, 1])
def test_the_loss_adds_four_distillations_after_the_first_step(grid, open_clip, method, steps):
    """The release's weights: 0.9 * (1, 1, 1 and 2000) and 0.05."""
    made, batch = method
    x, y = tiny_clip.pixels(open_clip, grid, INDEX), labels(grid, "outline", np.array(INDEX))
    teacher, student = (tiny_clip.drawn(open_clip).double() for _ in range(2))
    moved = {f"visual.{n}": p for n, p in made.net.visual.named_parameters()}
    moved |= dict(made.text.named_parameters()) | {"logit_scale": made.log_scale_1}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in student.named_parameters():
            change = 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += change
            moved[name] += change.float()
    made.teacher.step_1 += steps  # without an update, so that the teacher is the drawn CLIP
    sentences = [TEMPLATES[0].format(CLASSES[label]) for label in y.tolist()]
    tokens = open_clip.get_tokenizer(tiny_clip.NAME)(sentences)

    def embedded(model: Any) -> tuple[Tensor, Tensor, Tensor]:
        features = model.encode_image(x, normalize=True), model.encode_text(tokens, normalize=True)
        return *features, model.logit_scale.exp()

    def divergence(target: Tensor, logits: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")

    i, t, s = embedded(student)
    i_t, t_t, s_t = (each.detach() for each in embedded(teacher))
    of_teacher, own = s_t * i_t @ t_t.T, torch.arange(3)
    relational = (divergence(of_teacher, s * i @ t.T) + divergence(of_teacher.T, s * t @ i.T)) / 2
    crossed = (divergence(of_teacher, s * i @ t_t.T) + divergence(of_teacher.T, s * t @ i_t.T)) / 2
    interactive = F.cross_entropy(s * i @ t_t.T, own) + F.cross_entropy(s * t @ i_t.T, own)
    features = F.mse_loss(i, i_t) + F.mse_loss(t, t_t)
    terms = relational, crossed, interactive / 2, 2000 * features
    assert min(terms) > 1e-3
    product = torch.linalg.norm(student.visual.proj @ student.text_projection.T)
    expected = open_clip.ClipLoss()(i, t, s) + 0.05 * product + 0.9 * steps * sum(terms)
    losses_B = made(batch)
    assert_near(losses_B.mean(), expected, rtol=1e-4, atol=1e-5)
    losses_B.mean().backward()
    expected.backward()
    for name, parameter in student.named_parameters():
        gradient = moved[name].grad.reshape(parameter.shape)
        assert_near(gradient, parameter.grad, rtol=5e-3, atol=1e-4, name=name)
    assert not any(p.requires_grad for p in made.teacher.parameters())


def test_a_text_tower_without_a_projection_is_refused(grid, method, monkeypatch):
    made, _ = method
    monkeypatch.setattr(tracer.carot.Method, "prepare", lambda self, *_: None)
    made.text.text_projection = None
    with pytest.raises(ValueError, match=r"text tower has no projection matrix: choose a CLIP"):
        made.prepare(made.net, None)
