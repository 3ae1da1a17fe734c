import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call

from engine import models
from engine.folding import Folded
from engine.schema import ModelRecipe


def norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def drawn(net):
    """Statistics and scales as training leaves them, not the zeros and ones of a new network."""
    with torch.no_grad():
        for norm in norms(net):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    return net.eval()


def check(net, x, left=0):
    torch.manual_seed(0)
    drawn(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        right = net.double()(x.double())
        folded = Folded(net.float())
        found = functional_call(folded, folded.state(state), (x,))
    assert len(norms(folded)) == left
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)


def test_networks_of_the_benchmark_say_the_same():
    x = torch.randn(3, 3, 64, 64)
    for name in ("tf_efficientnet_lite0", "resnet18", "resnet50", "vit_tiny_patch16_224"):
        options = {"img_size": 64} if name.startswith("vit") else {}
        check(timm.create_model(name, num_classes=7, **options), x)


class Shared(nn.Module):
    """What its convolution returns is wanted twice."""

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


def test_a_tower_of_open_clip_says_the_same():
    """Its head asks which device it is on, which a tracer cannot say."""
    pytest.importorskip("open_clip", reason="the extra [clip]")
    check(
        models.create(ModelRecipe(name="m", arch="open_clip:RN50"), 7), torch.randn(1, 3, 224, 224)
    )


def test_a_norm_stays_where_it_must():
    preactivated = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for net in (preactivated, Shared(), Twice(), Looped()):
        check(net, torch.randn(2, 4, 5, 5), left=1)


def test_a_convolutions_own_bias_is_kept():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6), nn.ReLU())
    check(net, torch.randn(2, 3, 9, 7))


def test_state_leaves_the_callers_tensors_alone():
    net = drawn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    state = net.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    Folded(net).state(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
