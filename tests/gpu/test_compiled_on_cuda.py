"""Compiled models on a GPU, CUDA graphs among them: their logits are the uncompiled model's."""

from __future__ import annotations

import pytest
import timm
import torch

pytest.importorskip("msgspec")  # the engine's, which a bare machine has not

from engine.models import compiled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("option", ["auto", compiled.CUDA_GRAPHS])
@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "test_resnet"])
def test_batches_of_any_size_under_several_weights(arch: str, option: str) -> None:
    torch.manual_seed(0)
    plain = [timm.create_model(arch, num_classes=5).to(CUDA).eval() for _ in range(2)]
    form = timm.create_model(arch, num_classes=5).to(CUDA).eval()
    compiled.in_place(form, option, CUDA)
    x = torch.randn(7, 3, 160, 160, device=CUDA)
    pairs = []
    with torch.inference_mode():
        for net in plain:
            for size in (7, 7, 4, 1, 7):
                actual = torch.func.functional_call(form, net.state_dict(), (x[:size],))
                pairs.append((actual, net(x[:size])))
    for actual, expected in pairs:  # only now: a later batch must not write over an earlier answer
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
