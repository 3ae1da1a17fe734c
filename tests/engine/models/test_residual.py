"""A residual stream in bf16 while weights and their gradients stay in fp32."""

import torch
from torch import nn

from engine.evaluation import features
from engine.machine import precision
from engine.training import loop
from helpers.grids import Grid, prepared

IMAGES = (0, 9, 4, 16, 20)


def gradient(grid: Grid, precision: str) -> torch.Tensor:
    """Of fine-tuning's mean loss on some images, in all parameters (float64 [P]); double: twin."""
    case = prepared(grid, f"train.precision={precision}" if precision != "double" else "seed=0")
    net, method = case.net if precision == "double" else case.method.net, case.method
    if precision == "double":
        loss = nn.functional.cross_entropy(net(case.x), case.y)
    else:
        loop.prepare(method, case.builder)
        net = method.train().net
        loss = method(case.batch).mean()
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in net.parameters()])


def test_blocks_pass_on_bf16_and_gradients_are_as_close_as_under_autocast(grid):
    """To float64's. The patches' products are in bf16 either way."""
    exact = gradient(grid, "double")
    errors = {
        name: ((gradient(grid, name) - exact).norm() / exact.norm()).item()
        for name in ("fp32", "bf16", "bf16_residual")
    }
    assert errors["fp32"] < 1e-5 < 1e-3 < errors["bf16"] < 0.05
    assert errors["bf16"] != errors["bf16_residual"] < 2 * errors["bf16"]


def test_only_what_blocks_pass_on_is_in_bf16(grid):
    case = prepared(grid, "train.precision=bf16_residual", "method=ewc", "optimizer.name=adamw")
    loop.prepare(case.method, case.builder)
    taken = []
    for block in case.method.net.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].dtype))
    with loop.initialized(case.method, case.builder) as engine:
        loop.epochs(engine, case.method, case.builder)
        state = engine.optimizer.state
        moments = {t.dtype for of in state.values() for t in of.values()}
    assert set(taken) == {torch.bfloat16}
    assert moments == {p.dtype for p in case.method.parameters()} == {torch.float32}
    assert case.method.export().state.keys() == case.before.keys()


def test_cells_trained_so_have_a_name_of_their_own_and_others_keep_theirs(grid):
    names = {}
    for kind in ("fp32", "bf16", "bf16_residual"):
        builder = grid.builder(f"train.precision={kind}")
        names[kind] = builder.key()["train"]["precision"]
        key = features.key_of(builder, builder.base, builder.target, training=True)
        assert key["precision"] == names[kind]
    assert names == {
        "fp32": "fp32", "bf16": "bf16, head in fp32", "bf16_residual": "bf16_residual"
    }  # fmt: skip


def test_its_products_count_as_bf16():
    assert precision.autocast("bf16_residual", torch.device("cpu"))._enabled
    assert precision.of_products("bf16_residual") == "bf16"
