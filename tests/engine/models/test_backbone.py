"""A backbone that runs with weights that are given."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from engine.models.form import Backbone


def test_buffers_outside_the_state_dict_are_the_networks_own():
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **small)
    assert dict(net.named_buffers()).keys() - net.state_dict().keys()
    state = {name: tensor.clone() for name, tensor in net.eval().state_dict().items()}
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = net(x)
        for parameter in net.parameters():
            parameter.zero_()
        backbone = Backbone(net)
        actual = backbone.given(backbone.state(state), x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_what_a_network_derives_from_its_weights_goes_with_them():
    torch.manual_seed(0)
    nets = [timm.create_model("levit_128s", num_classes=7).eval() for _ in range(2)]
    for net in nets:
        for name, parameter in net.named_parameters():
            if "attention_biases" in name:
                nn.init.normal_(parameter)
    x = torch.randn(1, 3, 224, 224)
    states = [{name: tensor.clone() for name, tensor in net.state_dict().items()} for net in nets]
    with torch.no_grad():
        logits = [net(x) for net in nets]
        backbone = Backbone(nets[0])
        states = [backbone.state(state) for state in states]
        for state, expected in zip(states * 2, logits * 2, strict=True):
            actual = backbone.given(state, x)
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stray", [{}, {"3.bias": torch.zeros(2)}])
def test_a_weight_that_is_missing_or_unknown_is_refused(stray):
    """The network's own random weight must not take its place."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if not stray:
        del state["2.bias"]
    backbone = Backbone(net)
    with pytest.raises(RuntimeError, match=r"[23]\.bias"):
        backbone.given(backbone.state(state | stray), torch.zeros(1, 3, 4, 4))


def test_tied_weights_are_given_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    x, backbone = torch.randn(2, 3), Backbone(Tied())
    state = {k: v + 1 for k, v in Tied().state_dict().items() if k != "second.weight"}
    expected = x @ state["first.weight"].T + state["first.bias"]
    expected = expected @ state["first.weight"].T + state["second.bias"]
    torch.testing.assert_close(backbone.given(backbone.state(state), x), expected)
