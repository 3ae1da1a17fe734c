import pytest
import timm
import torch
from torch import nn

from engine import models
from engine.models.folding import Folded
from engine.recipe.schema import ModelRecipe
from kernels import interpolation


def norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def drawn(net):
    """Statistics and scales as training leaves them, not the zeros and ones of a new network."""
    with torch.no_grad():
        for norm in norms(net):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
    return net.eval()


def check(net, x, norms_left=0):
    torch.manual_seed(0)
    drawn(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        expected = net.double()(x.double())
        folded = Folded(net.float())
        actual = folded.given(folded.state(state), x)
    assert len(norms(folded)) == norms_left
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_networks_of_the_benchmark_say_the_same():
    x = torch.randn(3, 3, 64, 64)
    for name in ("tf_efficientnet_lite0", "resnet18", "resnet50", "vit_tiny_patch16_224"):
        options = {"img_size": 64} if name.startswith("vit") else {}
        check(timm.create_model(name, num_classes=7, **options), x)


def test_buffers_outside_the_state_dict_are_the_networks_own():
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **small)
    assert dict(net.named_buffers()).keys() - net.state_dict().keys()
    check(net, torch.randn(1, 3, 224, 224))


def test_what_a_network_derives_from_its_weights_goes_with_them():
    torch.manual_seed(0)
    nets = [drawn(timm.create_model("levit_128s", num_classes=7)) for _ in range(2)]
    for net in nets:
        for name, parameter in net.named_parameters():
            if "attention_biases" in name:
                nn.init.normal_(parameter)
    x = torch.randn(1, 3, 224, 224)
    states = [{name: tensor.clone() for name, tensor in net.state_dict().items()} for net in nets]
    with torch.no_grad():
        logits = [net(x) for net in nets]
        folded = Folded(nets[0])
        states = [folded.state(state) for state in states]
        for state, expected in zip(states * 2, logits * 2, strict=True):
            actual = folded.given(state, x)
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stray", [{}, {"3.bias": torch.zeros(2)}])
def test_a_weight_that_is_missing_or_unknown_is_refused(stray):
    """The network's own random weight must not take its place."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if not stray:
        del state["2.bias"]
    with pytest.raises(AssertionError, match=r"[23]\.bias"):
        Folded(net).state(state | stray)


def test_tied_weights_are_given_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    net, x = Tied().eval(), torch.randn(2, 3)
    state = {k: v.detach() + 1 for k, v in net.state_dict().items() if k != "second.weight"}
    folded = Folded(Tied().eval())
    expected = x @ state["first.weight"].T + state["first.bias"]
    expected = expected @ state["first.weight"].T + state["second.bias"]
    torch.testing.assert_close(folded.given(folded.state(state), x), expected)
    with pytest.raises(RuntimeError, match="Missing"):
        folded.given(folded.state({"first.weight": state["first.weight"]}), x)


def test_what_cannot_be_traced_stays_as_it_is():
    net = timm.create_model("mobilevit_xxs", num_classes=7)
    check(net, torch.randn(1, 3, 64, 64), norms_left=len(norms(net)))


def test_a_convolution_that_standardises_its_weights_keeps_its_norm():
    net = nn.Sequential(timm.layers.StdConv2d(3, 4, 3), nn.BatchNorm2d(4))
    check(net, torch.randn(2, 3, 6, 6), norms_left=1)
    check(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
        torch.randn(2, 3, 6, 6),
        norms_left=1,
    )


class Shared(nn.Module):
    """Two operations read what its convolution returns."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.convolution(x)
        return self.norm(y) + y


class Twice(Shared):
    def forward(self, x):
        return self.convolution(self.norm(self.convolution(x)))


class Looped(Shared):
    def forward(self, x):
        y = self.convolution(x)
        return self.norm(y) if y.sum() > -1e9 else y


@pytest.mark.slow
def test_a_tower_of_open_clip_says_the_same():
    """Its head reads the device, which a tracer cannot follow."""
    pytest.importorskip("open_clip", reason="the extra [clip]")
    check(
        models.create(ModelRecipe(name="m", arch="open_clip:RN50"), 7), torch.randn(1, 3, 224, 224)
    )


def test_a_norm_stays_where_it_must():
    preactivated = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for net in (preactivated, Shared(), Twice(), Looped()):
        check(net, torch.randn(2, 4, 5, 5), norms_left=1)


def test_a_convolutions_own_bias_is_kept():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6), nn.ReLU())
    check(net, torch.randn(2, 3, 9, 7))


def test_a_folded_mix_takes_the_memory_of_one_model():
    net = drawn(timm.create_model("resnet18", num_classes=7))
    rows, layout = interpolation.flatten([net.state_dict()])
    row = rows[0].clone()
    folded = Folded(net).state(interpolation.views(row, layout))
    storages = [tensor.untyped_storage() for tensor in folded.values()]
    alive = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    assert alive < 1.01 * row.nbytes  # its new biases
