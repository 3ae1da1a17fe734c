"""Methods against a plain-torch statement of their loss; LoRA's is in test_lora.py."""

import pytest
import torch
import torch.nn.functional as F

from engine import models
from engine.methods import soup
from engine.methods.base import Trained
from engine.run import Run
from engine.training import fisher
from helpers.grids import CONV, SIZE, prepared, reference, same, weights
from helpers.plain_losses import (
    HEAD,
    ON_FEW,
    OUTSIDE_BLOCKS,
    SLACK,
    check,
    cross_entropy,
    loop_fisher,
    move,
    over_classes,
    parameters,
)
from helpers.twins import assert_near

PROBE, RELEASED = "method=linear_probe", "method.variant=released"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), None),
        ((ON_FEW,), None),
        ((f"model.arch={CONV}",), None),
        ((PROBE, ON_FEW), HEAD),
        ((PROBE, RELEASED), (*OUTSIDE_BLOCKS, *HEAD)),
        ((PROBE, RELEASED, ON_FEW), (*OUTSIDE_BLOCKS, *HEAD)),
        ((PROBE, RELEASED, f"model.arch={CONV}"), ("classifier.weight", "classifier.bias")),
    ],
)
def test_the_loss_is_the_cross_entropy_over_the_classes_of_the_set(grid, words, names):
    """Of fine-tuning, and of a probe, which trains what its variant says."""
    case = prepared(grid, *words)
    check(case, cross_entropy(case, case.net(case.x)), parameters(case.net, names))
    assert case.method.net.training == (names is None)


@pytest.mark.parametrize("downstream", ["outline", "few"])
def test_a_prompt_is_a_frame_that_is_added_after_normalisation(grid, downstream):
    case = prepared(grid, "method=visual_prompt", f"downstream={downstream}")
    width = round(30 * SIZE / 224)
    assert case.method.prompt.numel() == 3 * (SIZE**2 - (SIZE - 2 * width) ** 2)
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[width : SIZE - width, width : SIZE - width] = False
    canvas = case.method.image_prompt().detach().double()
    assert not canvas[:, ~frame].any()
    assert canvas[:, frame].std() == pytest.approx(1, abs=0.1)  # N(0, 1)
    canvas.requires_grad_(True)
    expected_B = cross_entropy(case, case.net(case.x + canvas))
    losses_B = case.method(case.batch)
    assert_near(losses_B, expected_B, **SLACK)
    losses_B.mean().backward()
    expected_B.mean().backward()
    trained = {n: p for n, p in case.method.named_parameters() if p.requires_grad}
    assert set(trained) == {"prompt"} and not case.method.net.training
    assert_near(case.method.prompt.grad, canvas.grad[:, frame], rtol=1e-3, atol=1e-6)


def test_an_export_that_is_no_state_dict_is_refused(grid, monkeypatch):
    monkeypatch.setattr(Trained, "export", lambda self: 5)
    with pytest.raises(ValueError, match=r"fine_tune: .* returned int: return .*Export\(state"):
        grid.build("train.epochs=1", "seed=77")


@pytest.mark.parametrize("variant", ["original", "released"])
@pytest.mark.parametrize("extra", [(), (ON_FEW,), ("method.temperature=3", "method.weight=0.4")])
def test_lwf_adds_the_divergence_from_the_teacher(grid, variant, extra):
    case = prepared(grid, "method=lwf", f"method.variant={variant}", *extra)
    move(case)
    temperature, weight = (3, 0.4) if len(extra) == 2 else (2, 1.0)
    teacher_BC = reference(case.before)(case.x).detach()
    student_BC = case.net(case.x)
    student_BK, teacher_BK = (
        over_classes(case, logits)[0] / temperature for logits in (student_BC, teacher_BC)
    )
    terms_BK = F.kl_div(student_BK.log_softmax(1), teacher_BK.softmax(1), reduction="none")
    divergence_B = terms_BK.sum(1)
    assert divergence_B.mean() > 1e-3
    squared = temperature**2 if variant == "original" else 1
    expected_B = cross_entropy(case, student_BC) + weight * squared * divergence_B
    check(case, expected_B, parameters(case.net))


@pytest.mark.parametrize("arch", ["test_vit", CONV])
def test_the_fisher_is_the_mean_of_squared_per_image_gradients(grid, arch, caplog):
    """By vmap, not image by image."""
    caplog.set_level("INFO", "kernels.fisher")
    case = prepared(grid, f"model.arch={arch}", "method=ewc", "method.fisher_labels=data")
    expected = loop_fisher(grid, case, arch)
    actual = fisher.diagonal(case.builder, 0, "data")
    assert actual.keys() == expected.keys() and not caplog.messages
    for name, values in expected.items():
        off = {"rtol": 1e-3, "atol": 1e-4 * values.abs().max().item() + 1e-14}
        torch.testing.assert_close(actual[name].double(), values, **off)


def test_the_shares_of_the_ranks_sum_to_the_fisher_with_the_same_drawn_labels(grid, monkeypatch):
    """25 images in three batches: of five ranks two have none. The model is unsure of labels."""
    run, network = grid.builder("method=ewc", "train.batch_size=12"), Run.network

    def unsure(run, cell) -> torch.nn.Module:
        net = network(run, cell)
        models.head(net).weight.data *= 0.01
        return net

    monkeypatch.setattr(Run, "network", unsure)
    whole = fisher.diagonal(run, 0, "model")
    monkeypatch.setattr(fisher.ranks, "world", lambda: 5)
    monkeypatch.setattr(fisher.dist, "all_reduce", lambda share: None)
    shares = []
    for rank in range(5):
        monkeypatch.setattr(fisher.ranks, "rank", lambda rank=rank: rank)
        shares.append(fisher.diagonal(run, 0, "model"))
    assert sum(any(s.any() for s in share.values()) for share in shares) == 3
    for name, values in whole.items():
        total = sum(share[name].double() for share in shares)
        torch.testing.assert_close(total, values.double(), rtol=1e-5, atol=1e-12)


def test_the_fisher_of_fewer_images_or_drawn_labels_is_another_and_bad_words_are_refused(grid):
    builder = grid.builder("method=ewc")
    every, drawn = builder.fisher(0, "data"), builder.fisher(0, "model")
    fewer = builder.fisher(4, "data")
    reverse = builder.fisher(0, "reversed")
    assert not same(every, drawn) and not same(every, fewer) and not same(every, reverse)
    assert same(builder.fisher(99, "data"), every)
    assert same(drawn, fisher.diagonal(builder, 0, "model"))  # seeded
    with pytest.raises(ValueError, match=r"fisher_labels='guess': give `model`, `data` or"):
        builder.fisher(0, "guess")


def test_lp_ft_starts_at_the_finished_probe(grid):
    case = prepared(grid, "method=lp_ft")
    probe = weights(case.builder.cell("linear_probe"))
    assert same(case.method.net.state_dict(), probe) and not same(probe, case.before)
    net = reference(probe)
    check(case, cross_entropy(case, net(case.x)), parameters(net))


def test_a_member_of_a_soup_that_is_named_twice_counts_twice():
    assert soup.uniform(["pre", "ewc", "pre"]) == {"pre": 2 / 3, "ewc": 1 / 3}
