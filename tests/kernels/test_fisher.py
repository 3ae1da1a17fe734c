"""The diagonal Fisher against a backward pass per image."""

import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from helpers.children import DEVICE, ON_GPU
from helpers.twins import assert_close_to_max
from kernels import fisher
from kernels.fisher import FisherAccumulator


def made(forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | Tensor) -> nn.Module:
    """A model of these parts; tensors become parameters."""
    net = nn.Module()
    for name, part in parts.items():
        setattr(net, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
    net.forward = partial(forward, net)
    return net


def tokens(net: nn.Module, x: Tensor) -> Tensor:
    x = torch.cat([net.token.expand(len(x), -1, -1), net.embed(x)], 1)
    x = net.norm((net.position + x) * net.scale)
    return F.scaled_dot_product_attention(x, x, x).mean(1) * net.temperature


def twice(net: nn.Module, x: Tensor) -> Tensor:
    return net.twice(net.twice(x).tanh()) @ net.matrix


def in_two_places() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 6))


def convolution(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def checkpointed(net: nn.Module, x: Tensor, reentrant: bool = False) -> Tensor:
    return checkpoint(net.second, net.first(x).tanh(), use_reentrant=reentrant)


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def with_two_layers(forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    return made(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 6))


IMAGE = (4, 7, 5)
MODELS = {
    "tokens": (
        lambda: made(
            tokens, token=torch.randn(1, 1, 6), position=torch.randn(1, 5, 6),
            scale=torch.randn(6), temperature=torch.tensor(1.5), embed=nn.Linear(3, 6),
            norm=nn.LayerNorm(6),
        ), (4, 3),
    ),
    "batch norm": (
        lambda: convolution(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)),
        IMAGE,
    ),
    "weights standardised by batch_norm": (lambda: convolution(StdConv2d(4, 6, 3)), IMAGE),
    "words, of which an image may hold one twice": (
        lambda: made(
            lambda net, x: F.embedding(x.abs().long() % 7, net.table, padding_idx=0).sum(1).tanh(),
            table=torch.randn(7, 6),
        ), (9,),
    ),
    "a layer twice, a matrix, one unused": (
        lambda: made(
            twice, twice=nn.Linear(4, 4), matrix=torch.randn(4, 6), unused=torch.randn(3)
        ), (4,),
    ),
    "in two places": (in_two_places, (4,)),
}  # fmt: skip
IMAGE_BY_IMAGE = {
    "a path by values": lambda net, x: net.second(net.first(x).tanh() if x.sum() > 0 else x),
    "gradient checkpointing": checkpointed,
}


def loop(model: nn.Module, images: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The twin: one backward pass per image."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        loss = F.cross_entropy(model(image).masked_fill(~mask, float("-inf")), label)
        gradients = torch.autograd.grad(loss, parameters.values(), materialize_grads=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient.square() / len(images)
    return total


def assert_equals_loop(model: nn.Module, images: Tensor, share: float = 1e-5, **options) -> None:
    """With the given labels, and a mask on the CPU."""
    model, images = model.to(DEVICE), images.to(DEVICE)
    classes = model.eval()(images[:1]).shape[1]
    mask = torch.arange(classes) < classes - 1
    labels = torch.arange(len(images), device=DEVICE) % (classes - 1)
    before = dict(model.named_parameters())
    accumulator = FisherAccumulator(model, mask=mask, **options)
    for part in (slice(0, 5), slice(5, None)):
        accumulator.update(images[part], labels[part])
    diagonal = accumulator.mean()
    assert all(model.get_parameter(name) is p for name, p in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    truth = loop(model, images, labels, mask.to(DEVICE))
    assert diagonal.keys() == truth.keys()
    for name, expected in truth.items():
        assert_close_to_max(diagonal[name], expected, name, max(share, 1e-4 * ON_GPU))


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 9])
def test_every_use_of_a_parameter_equals_the_loop(name, count, caplog):
    torch.manual_seed(0)
    caplog.set_level(logging.INFO, "kernels.fisher")
    build, shape = MODELS[name]
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert_equals_loop(build(), 3 * torch.randn(count, *shape))
    assert not caplog.messages, "by vmap"


@pytest.mark.gpu
@pytest.mark.parametrize("name", IMAGE_BY_IMAGE)
def test_what_vmap_cannot_run_goes_image_by_image(name, caplog):
    torch.manual_seed(0)
    caplog.set_level(logging.INFO, "kernels.fisher")
    assert_equals_loop(with_two_layers(IMAGE_BY_IMAGE[name]), torch.randn(9, 4))
    (message,) = caplog.messages
    assert "image by image, which is slower: " in message


def test_reversed_logits_keep_the_importance_of_a_confident_model():
    """EWC-DR: the model's gradients vanish, those of the negated logits do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
    images = torch.randn(9, 4)
    with torch.no_grad():
        model[2].weight *= 1000
    labels = model(images).argmax(1)
    plain, turned = (FisherAccumulator(model, reverse=reverse) for reverse in (False, True))
    for accumulator in (plain, turned):
        accumulator.update(images, labels)
    negated = loop(nn.Sequential(model, Negated()), images, labels, torch.ones(6, dtype=torch.bool))
    for name, expected in turned.mean().items():
        assert_close_to_max(negated[f"0.{name}"], expected, name, 1e-5)
    largest = [max(s.max().item() for s in a.sums.values()) for a in (plain, turned)]
    assert largest[0] < 1e-3 * largest[1]


def test_bf16_rounds_the_gradients_and_not_their_squares():
    """The gradients of a model that is sure of its answers have small squares."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6))
    images = torch.randn(9, 4)
    assert_equals_loop(model, images, 2e-2, bf16=True)
    with pytest.raises(AssertionError):
        assert_equals_loop(model, images, 1e-4, bf16=True)
    with torch.no_grad():
        model[2].weight *= 12
    accumulator = FisherAccumulator(model.half())
    accumulator.update(images.half(), model(images.half()).argmax(1))
    assert all(total.dtype == torch.float32 and total.any() for total in accumulator.sums.values())


def test_memory_holds_the_gradients_of_few_images(monkeypatch):
    class Largest(TorchDispatchMode):
        """Records the most numbers that any operator returned in one tensor."""

        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.numel = max(self.numel, *sizes, 0)
            return out

    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.GELU(), nn.Flatten())
    for numbers, images in ((1 << 30, 8), (3 * 64 * 64, 3), (1, 1)):
        monkeypatch.setattr(fisher, "_NUMBERS", numbers)
        with Largest() as accumulated:
            FisherAccumulator(model).update(torch.randn(32, 2, 64))
        assert accumulated.numel == images * 64 * 64


def test_frozen_parameters_are_left_out_and_state_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    accumulator = FisherAccumulator(model)
    accumulator.update(torch.randn(4, 3))
    assert accumulator.mean().keys() == {"0.bias", "2.weight", "2.bias"}
    assert [m.training for m in model] == [True, False, True]


def test_model_labels_follow_the_softmax_and_repeat_by_seed(monkeypatch):
    monkeypatch.setattr(fisher, "_IMAGES", 1000)
    logits = torch.tensor([0.0, 1.0, float("nan"), 2.0])
    model = nn.Linear(1, 4)
    model.weight.data.zero_()
    model.bias.data.copy_(logits)
    mask = torch.tensor([True, True, False, True])

    def run(batches: list[int], skipped: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        accumulator = FisherAccumulator(model, mask=mask, generator=generator)
        for number, size in enumerate(batches):
            if number == skipped:
                accumulator.skip(size)
            else:
                accumulator.update(torch.zeros(size, 1))
        return accumulator.sums["bias"]

    p, diagonal = logits[mask].softmax(0), run([20_000]) / 20_000
    # E_y (p_c - [y = c])^2 = p_c (1 - p_c).
    torch.testing.assert_close(diagonal[mask], p * (1 - p), rtol=0.05, atol=0.0)
    assert diagonal[2] == 0 and torch.equal(run([20_000]) / 20_000, diagonal)
    parts = [run([300, 500], skipped=number) for number in range(2)]
    torch.testing.assert_close(sum(parts), run([300, 500]), rtol=1e-4, atol=0.0)


X = torch.randn(2, 3)
NAN = torch.tensor([[0.0] * 3, [float("nan")] * 3])
BOTH = torch.tensor([True, False, True, True])


@pytest.mark.parametrize(
    ("images", "labels", "mask", "message"),
    [
        (X[:0], None, None, "no images"),
        (X, None, BOTH[:3], r"mask must be bool \[4\]"),
        (X, torch.arange(3), None, r"labels must be int64 \[2\]"),
        (NAN, None, None, "sample 1 of the batch: no label can be drawn"),
        (X, torch.tensor([0, -100]), None, "sample 1: label -100 is not among"),
        (X, torch.tensor([0, 1]), BOTH, "sample 1: label 1 is not"),
    ],
)
def test_what_cannot_be_is_refused(images, labels, mask, message):
    accumulator = FisherAccumulator(nn.Linear(3, 4), mask=mask)
    with pytest.raises(ValueError, match=message):
        accumulator.update(images, labels)
        accumulator.mean()


def test_layers_over_the_batch_are_refused():
    coupled = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 4))
    with pytest.raises(ValueError, match="0 normalises by the statistics of the batch"):
        FisherAccumulator(coupled)


def test_reentrant_checkpointing_is_refused_by_torch():
    """Its second forward pass would be of other parameters than those that are asked for."""
    model = with_two_layers(partial(checkpointed, reentrant=True))
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        FisherAccumulator(model).update(torch.randn(5, 4))
