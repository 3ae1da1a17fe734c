"""Cells that methods trained: what moved and what did not, exports, and files kept whole."""

import pytest
import torch

from engine.store import artifacts
from helpers.damage import flip
from helpers.grids import CONV, VIT, prepared, reference, weights
from helpers.plain_losses import HEAD, OUTSIDE_BLOCKS
from helpers.twins import assert_near

QKV = tuple(f"blocks.{i}.attn.qkv.weight" for i in range(6))
METHOD = "from engine.methods.fine_tune import Method, Recipe\n"
TRAINS = [
    ("fine_tune", "original", None),
    ("linear_probe", "original", HEAD),
    ("linear_probe", "released", (*OUTSIDE_BLOCKS, *HEAD)),
    ("visual_prompt", "original", ()),
    ("lora", "original", (*QKV, *HEAD)),
    ("lora", "released", (*QKV, *OUTSIDE_BLOCKS)),
]


@pytest.mark.parametrize(("method", "variant", "moves"), TRAINS)
def test_what_trains_moves_and_nothing_else_does_bit_for_bit(grid, method, variant, moves):
    builder, cell = grid.build(f"method={method}", f"method.variant={variant}")
    before, after = builder.base.state(), weights(cell)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == (set(before) if moves is None else set(moves))
    assert (cell.backbone == builder.base.backbone) == (moves == HEAD)
    assert (cell.prompt() is not None) == (method == "visual_prompt")


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_merged_factors_are_a_plain_timm_model_with_the_same_logits(grid, arch):
    case = prepared(grid, "method=lora", f"model.arch={arch}")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in case.method.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        case.method.eval()
        expected = case.method.logits(case.batch)
        assert not torch.allclose(expected.double(), case.net(case.x), atol=1e-3)
        actual = reference(case.method.export().state, arch)(case.x)
        assert_near(expected, actual, rtol=1e-4, atol=1e-4)


def test_frozen_batchnorm_keeps_its_buffers_and_free_batchnorm_does_not(grid):
    words = (f"model.arch={CONV}", "train.batch_size=5")
    builder, cell = grid.build(*words)
    before, after = builder.base.state(), weights(cell)
    free = weights(grid.build(*words, "train.freeze_batchnorm=false")[1])
    buffers = [n for n in before if "running_" in n or "num_batches" in n]
    assert buffers and all(torch.equal(before[n], after[n]) for n in buffers)
    assert all(not torch.equal(before[n], free[n]) for n in buffers)


def test_an_edited_method_of_the_users_own_must_train_again(grid, tmp_path):
    """Its comments do not count."""
    file, keys = tmp_path / "mine.py", []
    for text in (METHOD, f"{METHOD}# a comment\n", f"{METHOD}edited = True\n"):
        file.write_text(text)
        keys.append(grid.builder(f"method.module={file}", "method.name=mine").key())
    assert keys[0] == keys[1] != keys[2]


def test_an_altered_byte_of_what_is_kept_is_refused(grid):
    builder = grid.builder("method=ewc", "seed=5", f"runs={grid.runs.parent / 'altered'}")
    uses = {
        "fisher/*/fisher.safetensors": lambda: builder.fisher(4, "data"),
        "features/*/features.npy": lambda: builder.features(builder.base, builder.target),
        "cells/visual*/prompt.safetensors": lambda: builder.cell("visual_prompt").prompt(),
        "cells/visual*/weights.safetensors": lambda: builder.cell("visual_prompt").state(),
        "cells/visual*/cell.json": lambda: builder.cell("visual_prompt").meta,
    }
    for use in uses.values():
        use()
    for pattern, use in uses.items():
        for path in builder.store.root.glob(pattern):
            flip(path, -9)
        artifacts._hash_once.cache_clear()
        with pytest.raises(ValueError, match=rf"{pattern.rpartition('/')[2]} was altered; delete"):
            use()
        flip(path, -9)
