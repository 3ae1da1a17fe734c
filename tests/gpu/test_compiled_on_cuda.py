"""Compiled models on a GPU: their logits are the uncompiled model's."""

import pytest
import timm
import torch

from helpers.children import NEEDS_GPU
from helpers.twins import assert_near

pytest.importorskip("msgspec")  # the engine's, which a bare machine has not

from engine.machine import precision
from engine.models.execution import compile_in_place

pytestmark = NEEDS_GPU
CUDA = torch.device("cuda")


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "test_resnet"])
def test_batches_of_any_size_under_several_weights(arch):
    precision.no_tf32()  # cuDNN's default has 11 bits
    torch.manual_seed(0)
    plain = [timm.create_model(arch, num_classes=5).to(CUDA).eval() for _ in range(2)]
    form = timm.create_model(arch, num_classes=5).to(CUDA).eval()
    compile_in_place(form, "auto", CUDA)
    x = torch.randn(7, 3, 160, 160, device=CUDA)
    with torch.inference_mode():
        for net in plain:
            for size in (7, 7, 4, 1, 7):
                actual = torch.func.functional_call(form, net.state_dict(), (x[:size],))
                assert_near(actual, net(x[:size]), rtol=1e-3, atol=1e-3)
