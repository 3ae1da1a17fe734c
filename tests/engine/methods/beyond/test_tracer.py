"""TRACER beside open_clip's model in float64, on a CLIP that the test draws."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.methods.beyond import flyp
from helpers import tiny_clip


@pytest.mark.parametrize("steps", [0, 1])
def test_the_loss_adds_four_distillations_after_the_first_step(grid, open_clip, clip_words, steps):
    """The release's weights: 0.9 * (1, 1, 1 and 2000) and 0.05."""
    case = tiny_clip.beside(grid, open_clip, [*clip_words, "method=tracer"])
    case.method.teacher.step_1 += steps  # without an update: the teacher is the drawn CLIP

    def divergence(target: Tensor, logits: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")

    i, t, s = case.embedded(case.after)
    i_t, t_t, s_t = (each.detach() for each in case.embedded(case.before))
    of_teacher, own = s_t * i_t @ t_t.T, torch.arange(3)
    relational = (divergence(of_teacher, s * i @ t.T) + divergence(of_teacher.T, s * t @ i.T)) / 2
    crossed = (divergence(of_teacher, s * i @ t_t.T) + divergence(of_teacher.T, s * t @ i_t.T)) / 2
    interactive = F.cross_entropy(s * i @ t_t.T, own) + F.cross_entropy(s * t @ i_t.T, own)
    features = F.mse_loss(i, i_t) + F.mse_loss(t, t_t)
    terms = relational, crossed, interactive / 2, 2000 * features
    assert min(terms) > 1e-3
    product = torch.linalg.norm(case.after.visual.proj @ case.after.text_projection.T)
    expected = open_clip.ClipLoss()(i, t, s) + 0.05 * product + 0.9 * steps * sum(terms)
    case.check(expected, rtol=5e-3, atol=1e-4)
    assert not any(p.requires_grad for p in case.method.teacher.parameters())


def test_a_text_tower_without_a_projection_is_refused(grid, open_clip, clip_words, monkeypatch):
    made = tiny_clip.beside(grid, open_clip, [*clip_words, "method=tracer"]).method
    monkeypatch.setattr(flyp.Method, "prepare", lambda self, *_: None)
    made.text.text_projection = None
    with pytest.raises(ValueError, match=r"text tower has no projection matrix: choose a CLIP"):
        made.prepare(made.net, None)
