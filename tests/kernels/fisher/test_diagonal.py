"""The diagonal Fisher against a batch-1 loop, operator by operator and on whole models."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from helpers.children import DEVICE, ON_GPU
from helpers.twins import assert_close_to_max
from kernels import reference
from kernels.fisher import outer_squares as outer
from kernels.fisher.diagonal import FisherAccumulator, fisher_diagonal


def made(forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | Tensor) -> nn.Module:
    """A model of these parts; tensors become parameters."""
    net = nn.Module()
    for name, part in parts.items():
        setattr(net, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
    net.forward = partial(forward, net)
    return net


def bare(net: nn.Module, x: Tensor) -> Tensor:
    """Parameters in the ways models use them: expanded, added, scaled."""
    x = torch.cat([net.token.expand(len(x), -1, -1), net.embed(x)], 1)
    x = (net.position + x) * net.scale
    return x.mean(1) * net.temperature


def keywords(net: nn.Module, x: Tensor) -> Tensor:
    """Arguments by name, and settings of one number for two dimensions."""
    x = net.conv(x).tanh().mean((2, 3)) * net.token.expand(size=(len(x), 6))
    return torch.add(x, other=net.shift)


def words(**options: Any) -> nn.Module:
    """An embedding of words, of which an example may hold one twice."""
    return made(
        lambda net, x: F.embedding(x, net.table, **options).sum(1).tanh(), table=torch.randn(7, 4)
    )


def in_two_places() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 6))


def convolution(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def normalised(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 1), norm, nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGE = (4, 7, 5)
MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)), (3,)),
    "bare": (
        lambda: made(
            bare, token=torch.randn(1, 1, 6), position=torch.randn(1, 5, 6),
            scale=torch.randn(6), temperature=torch.tensor(1.5), embed=nn.Linear(3, 6),
        ), (4, 3),
    ),
    "conv": (lambda: convolution(nn.Conv2d(4, 6, 3, stride=2, padding=1)), IMAGE),
    "dilated": (lambda: convolution(nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2)), IMAGE),
    "pointwise": (lambda: convolution(nn.Conv2d(4, 6, 1, stride=2, bias=False)), IMAGE),
    "depthwise": (lambda: convolution(nn.Conv2d(4, 8, 3, padding=1, groups=4)), IMAGE),
    "grouped": (lambda: convolution(nn.Conv2d(4, 6, 3, groups=2)), IMAGE),
    "batch norm": (lambda: normalised(nn.BatchNorm2d(6)), IMAGE),
    "group norm": (lambda: normalised(nn.GroupNorm(2, 6)), IMAGE),
    "layer norm": (lambda: normalised(nn.LayerNorm((6, 7, 5))), IMAGE),
    "embedding": (partial(words, padding_idx=0), (3,)),
    "embedding by frequency": (partial(words, padding_idx=-1, scale_grad_by_freq=True), (3,)),
}  # fmt: skip
FALLBACKS = {
    "one layer called twice, a matrix, one unused": (
        lambda: made(
            lambda net, x: net.twice(net.twice(x).tanh()) @ net.matrix,
            twice=nn.Linear(4, 4), matrix=torch.randn(4, 6), unused=torch.randn(3),
        ), (4,), {"twice.weight", "twice.bias", "matrix", "unused"},
    ),
    "same padding": (lambda: convolution(nn.Conv2d(4, 6, 3, padding="same")), IMAGE, {"0.weight"}),
    "weights standardised by batch_norm": (
        lambda: convolution(StdConv2d(4, 6, 3)), IMAGE, {"0.weight"}
    ),
    "in two places": (in_two_places, (4,), {"0.weight", "0.bias"}),
    "keywords": (
        lambda: made(
            keywords, conv=nn.Conv2d(4, 6, 3, stride=(2,), padding=(1,)),
            token=torch.randn(1, 6), shift=torch.randn(6),
        ), IMAGE, {"shift"},
    ),
    "no gradient joins logits to images": (
        lambda: made(lambda net, x: net.prior.repeat(len(x), 1), prior=torch.randn(1, 6)),
        (3,), {"prior"},
    ),
    "tokens along dimension 0, as many as examples by chance": (
        lambda: made(
            lambda net, x: net.linear(x.transpose(0, 1)).tanh().mean(0), linear=nn.Linear(3, 6)
        ), (5, 3), {"linear.weight", "linear.bias"},
    ),
}  # fmt: skip


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and (tensor.ndim < 2 or "gamma" in name):
            tensor.data.uniform_(0.3, 1.5, generator=generator)
    return model


def assert_equals_loop(model: nn.Module, images: Tensor, classes: int) -> frozenset[str]:
    """Over all classes but the last; what fell back."""
    model, images = model.to(DEVICE), images.to(DEVICE)
    mask = torch.arange(classes, device=DEVICE) < classes - 1
    labels = torch.arange(len(images), device=DEVICE) % (classes - 1)
    before = dict(model.named_parameters())
    accumulator = FisherAccumulator(model, mask=mask)
    for part, part_labels in zip(images.split(5), labels.split(5), strict=True):
        accumulator.update(part, part_labels)
    fisher = accumulator.mean()
    assert all(model.get_parameter(name) is p for name, p in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    truth = reference.fisher_diagonal(model.eval(), images, labels, mask=mask)
    assert fisher.keys() == truth.keys()
    for name, expected in truth.items():
        assert_close_to_max(fisher[name], expected, name, 1e-4 if ON_GPU else 1e-5)
    return accumulator.fallback


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS | FALLBACKS)
@pytest.mark.parametrize("batch", [1, 6])
def test_every_use_of_a_parameter_equals_the_loop(name, batch, caplog, monkeypatch):
    """By a rule, with products of four images or fewer at once, or by falling back, and named."""
    monkeypatch.setitem(outer._NUMBERS, DEVICE.type, 100)
    torch.manual_seed(0)
    build, shape, *fallback = (MODELS | FALLBACKS)[name]
    model = randomise(build())
    images = torch.randn(batch, *shape)
    if name.startswith("embedding"):
        images = torch.randint(7, images.shape)
    caplog.set_level(logging.INFO, "kernels.fisher.diagonal")
    with torch.backends.cudnn.flags(allow_tf32=False):
        fallen = assert_equals_loop(model, images, model(images).shape[1])
    assert fallen == set().union(*fallback)
    assert all(parameter in caplog.text for parameter in fallen)


def test_memory_does_not_grow_with_images_times_parameters(monkeypatch):
    class Largest(TorchDispatchMode):
        """Records the most numbers that any operator returned in one tensor."""

        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.numel = max(self.numel, *sizes, 0)
            return out

    monkeypatch.setitem(outer._NUMBERS, "cpu", 64 * 64)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Flatten())
    images, labels = torch.randn(32, 2, 64), torch.arange(32)
    with Largest() as accumulated:
        FisherAccumulator(model).update(images, labels)
    assert accumulated.numel == 64 * 64  # of all images' squares at once: 32 * 64 * 64


def test_squares_of_fp16_gradients_do_not_vanish():
    torch.manual_seed(0)
    model = made(
        lambda net, x: net.layers(net.embed(x).sum(1) * net.scale) * 1e-4,
        embed=nn.Embedding(9, 8),
        scale=torch.ones(8),
        layers=nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6)),
    )
    x, labels = torch.randint(9, (6, 3)), torch.arange(6)
    truth = reference.fisher_diagonal(model, x, labels)
    fisher = fisher_diagonal(model.half(), [(x, labels)], labels="data")
    for name, expected in truth.items():
        assert_close_to_max(fisher[name], expected, name, share=0.03)


def test_autocast_changes_the_gradients_and_not_their_squares():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight *= 12  # sure of its answers, whose gradients are small
    x = torch.randn(4, 8)
    labels = model(x).argmax(1)
    accumulator = FisherAccumulator(model)
    with torch.autocast("cpu", torch.float16):
        accumulator.update(x, labels)
    for name, expected in reference.fisher_diagonal(model, x, labels).items():
        torch.testing.assert_close(accumulator.mean()[name], expected, rtol=0.5, atol=0)


def test_a_large_batch_goes_in_parts_and_draws_the_same_labels(monkeypatch):
    torch.manual_seed(0)
    model, x, sizes = nn.Linear(4, 3), torch.randn(5, 4), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))

    def diagonal() -> dict[str, Tensor]:
        return fisher_diagonal(model, [x], generator=torch.Generator().manual_seed(0))

    whole = diagonal()
    monkeypatch.setattr("kernels.fisher.diagonal._AT_ONCE", 2)
    torch.testing.assert_close(diagonal(), whole)
    assert sizes == [1, 5, 1, 2, 2, 1]


def test_frozen_parameters_are_left_out_and_state_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    fisher = fisher_diagonal(model, [torch.randn(4, 3)])
    assert fisher.keys() == {"0.bias", "2.weight", "2.bias"}
    assert [m.training for m in model] == [True, False, True]


def test_model_labels_follow_the_softmax_and_repeat_by_seed():
    logits = torch.tensor([0.0, 1.0, float("nan"), 2.0])
    model = nn.Linear(1, 4)
    model.weight.data.zero_()
    model.bias.data.copy_(logits)
    mask = torch.tensor([True, True, False, True])
    images = torch.zeros(20000, 1)

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return fisher_diagonal(model, [images], mask=mask, generator=generator)["bias"]

    p = logits[mask].softmax(0)
    # E_y (p_c - [y = c])^2 = p_c (1 - p_c).
    torch.testing.assert_close(run()[mask], p * (1 - p), rtol=0.05, atol=0.0)
    assert run()[2] == 0 and torch.equal(run(), run())


X = torch.randn(2, 3)
NAN = torch.tensor([[0.0] * 3, [float("nan")] * 3])
BOTH = torch.tensor([True, False, True, True])


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (X[:0], {}, "no images"),
        (X, {"labels": "data"}, "images, labels"),
        (X, {"labels": "true"}, "not 'true'"),
        (X, {"mask": BOTH[:3]}, r"mask must be bool \[4\]"),
        (NAN, {}, "sample 1 of the batch: no label can be drawn"),
        ((X, torch.tensor([0, -100])), {"labels": "data"}, "sample 1: label -100 is not among"),
        ((X, torch.tensor([0, 1])), {"labels": "data", "mask": BOTH}, "sample 1: label 1 is not"),
    ],
)
def test_what_cannot_be_is_refused(batch, options, message):
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(nn.Linear(3, 4), [batch], **options)


def test_layers_over_the_batch_are_refused():
    coupled = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 4))
    with pytest.raises(ValueError, match="batch_norm over"):
        fisher_diagonal(coupled, [X])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused_and_may_be_turned_off(reentrant):
    def forward(net, x):
        x = net.first(x).tanh()
        saves = net.grad_checkpointing
        return checkpoint(net.second, x, use_reentrant=reentrant) if saves else net.second(x)

    model = made(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 3))
    model.grad_checkpointing = True
    images, labels = torch.randn(5, 4), torch.randint(3, (5,))
    accumulator = FisherAccumulator(model)
    with pytest.raises(ValueError, match=r"checkpointing.*turn it off.*set_grad_checkpointing"):
        accumulator.update(images, labels)
    model.grad_checkpointing = False
    assert not assert_equals_loop(model, images, 3)
