"""FLYP against open_clip's own model, loss and zero-shot head, on a CLIP that the test draws."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from engine.machine import ranks
from engine.methods.beyond import flyp
from helpers import tiny_clip
from helpers.grids import CLASSES, Grid, labels, prepared, weights
from helpers.tiny_clip import TEMPLATES
from helpers.twins import assert_near

# Of Beta(1/2, 1/2) at (k + 1/2) / 5 for k = 0 ... 4, the third of the sum of the first three.
DENSITIES = [(x * (1 - x)) ** -0.5 for x in (0.1, 0.3, 0.5)]
BETA_SHARE = DENSITIES[2] / sum(DENSITIES)


@pytest.fixture
def words(clip_words: list[str]) -> list[str]:
    return clip_words


def plain_loss(package: Any, model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """open_clip's contrastive loss, the mean over the batch."""
    sentences = [TEMPLATES[0].format(CLASSES[label]) for label in y.tolist()]
    tokens = package.get_tokenizer(tiny_clip.NAME)(sentences)
    features = model.encode_image(x, normalize=True), model.encode_text(tokens, normalize=True)
    return package.ClipLoss()(*features, model.logit_scale.exp())


def batch_of(grid: Grid, words: list[str], index: list[int]) -> tuple[flyp.Method, Any]:
    builder = grid.builder(*words)
    method = flyp.Method(builder.recipe.method)
    method.prepare(builder.network(builder.base), builder)
    method.train()
    (batch,) = builder.sets.source("outline").batches([np.array(index)])
    return method, batch


def test_a_cell_is_the_tuned_tower_under_the_head_of_the_tuned_text_tower(grid, open_clip, words):
    """Full-batch steps of a bare loop, then open_clip's own zero-shot classifier."""
    steps, lr = 3, 1e-3
    words = [*words, "optimizer.name=adamw", f"optimizer.lr={lr}", "optimizer.eps=1e-3"]
    words += [f"train.epochs={steps}", "train.batch_size=25", "train.warmup_steps=0"]
    builder, cell = grid.build(*words)
    index = builder.target.split("train")
    x, y = tiny_clip.pixels(open_clip, grid, index), labels(grid, "outline", index)
    model = tiny_clip.drawn(open_clip).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    descent = torch.optim.AdamW(model.parameters(), eps=1e-3, weight_decay=0)
    for step in range(steps):
        descent.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        descent.zero_grad()
        plain_loss(open_clip, model, x, y).backward()
        descent.step()
    trained = weights(cell)
    for name, parameter in model.visual.named_parameters():
        expected = parameter.detach() - start[f"visual.{name}"]
        actual = trained[f"visual.{name}"].double() - start[f"visual.{name}"]
        assert (actual - expected).norm() <= 2e-3 * expected.norm() + 1e-6, name
    expected_CE = tiny_clip.head(open_clip, model).T
    assert_near(trained["head.weight"], expected_CE, rtol=1e-3, atol=1e-3)
    assert not trained["head.bias"].any()
    before = builder.base.state()["head.weight"]
    assert (trained["head.weight"] - before).norm() > 0.01 * before.norm()


def test_templates_and_words_are_drawn_from_all_of_a_class(grid, words):
    words = [*words, f"dataset.templates={json.dumps(TEMPLATES)}"]
    method, batch = batch_of(grid, words, [0] * 5)
    torch.manual_seed(1)
    drawn = [sentence for _ in range(20) for sentence in method.captions(batch.index)]
    assert set(drawn) == {"a photo of a bar.", "a bar."}
    torch.manual_seed(1)
    assert method.captions(batch.index) == drawn[:5]
    method.outputs = {0: [0, 2]}  # a class that stands for two of the head's
    drawn = [sentence for _ in range(40) for sentence in method.captions(batch.index)]
    assert set(drawn) == {t.format(name) for t in TEMPLATES for name in ("bar", "disc")}


def test_an_export_during_training_leaves_the_method_as_it_is(grid, words, monkeypatch):
    method, batch = batch_of(grid, words, [0, 9, 4])
    names = [name for name, _ in method.named_parameters()]
    before = method(batch)
    monkeypatch.setattr(method.text, "to", None)  # it stays where it is
    method.export()
    assert method.text.training and [name for name, _ in method.named_parameters()] == names
    assert torch.equal(method(batch), before)


def test_several_ranks_are_refused(grid, words, monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ValueError, match="it trains on one rank"):
        prepared(grid, *words)


@pytest.mark.parametrize("average", ["ema", "beta"])
def test_carot_adds_a_teacher_and_penalties_of_both_projections(grid, open_clip, words, average):
    """After a step that parts the student from its teacher."""
    words = [*words, "method=carot", f"method.average={average}", "method.weight=0.7"]
    words += ["train.epochs=4", "train.batch_size=25"]
    case = tiny_clip.beside(grid, open_clip, words)
    case.method.teacher.step_1 += 1
    case.method.after_step()  # the second of four
    share = {"ema": 0.1, "beta": BETA_SHARE}[average]
    with torch.no_grad():
        for name, parameter in case.before.named_parameters():
            parameter += share * (case.after.get_parameter(name) - parameter)

    def similarities(model: Any) -> torch.Tensor:
        image, text, scale = case.embedded(model)
        return scale * image @ text.T

    ours, theirs = similarities(case.after), similarities(case.before).detach()
    distance = -(theirs.softmax(1) * ours.log_softmax(1)).sum(1)
    distance -= (theirs.T.softmax(1) * ours.T.log_softmax(1)).sum(1)
    gram = case.after.visual.proj.T @ case.after.visual.proj
    skew = (gram - torch.eye(len(gram))).square().sum().sqrt()
    contrast = plain_loss(open_clip, case.after, case.x, case.y)
    product = torch.linalg.norm(case.after.visual.proj @ case.after.text_projection.T)
    case.check(contrast + 0.7 * distance.mean() + 0.2 * skew + 0.05 * product)
    assert not any(p.requires_grad for p in case.method.teacher.parameters())


def test_lipsum_ft_keeps_similarities_to_random_texts(grid, open_clip, words):
    """After a change of the vision tower."""
    words = [*words, "method=lipsum_ft", "method.texts=7", "method.tokens=3", "method.weight=0.5"]
    case = tiny_clip.beside(grid, open_clip, words, text=False)
    method, before, model = case.method, case.before, case.after
    torch.manual_seed(4)
    tokens = method.texts()
    assert tokens.shape == (7, 20) and (tokens[:, 0] == 49406).all()
    assert (tokens[:, 4] == 49407).all() and (tokens[:, 1:4] < 49406).all()
    assert not tokens[:, 5:].any() and len(set(tokens[:, 1:4].flatten().tolist())) > 15
    scale, texts = model.logit_scale.exp(), model.encode_text(tokens, normalize=True).detach()
    ours = model.encode_image(case.x, normalize=True)
    kept_BK = scale * (ours - before.encode_image(case.x, normalize=True).detach()) @ texts.T
    kept = kept_BK.square().sum(1) / (2 * 7)
    assert kept.mean() > 1e-3
    head = tiny_clip.head(open_clip, before)
    cross_entropy = torch.nn.functional.cross_entropy(ours @ head, case.y)
    torch.manual_seed(4)
    case.check(cross_entropy + 0.5 * kept.mean())
    embeddings_CE = (head / scale).T
    assert_near(method.head.weight, embeddings_CE, rtol=1e-4, atol=1e-6)
    assert not method.head.bias.requires_grad
    exported = method.export().state["head.weight"]
    assert_near(exported, scale * embeddings_CE, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in method.text.parameters()) and not method.text.training
