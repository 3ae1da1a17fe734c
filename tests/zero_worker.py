"""One rank of `test_optim.py`: trains under DeepSpeed and in a bare loop, and compares the weights.

python zero_worker.py RESULTS PART, with RANK, WORLD_SIZE and the like set. PART is `whole`, or
`half` for a half of the configurations in which any four choices take all values. Rank 0 writes a
JSON object: configuration -> [largest relative error of a parameter, of the penalty's value].
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.machine import ranks
from engine.methods.objectives import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training.optim import attach, build, track

STEPS, MICRO_BATCH, LAM = 5, 3, 0.5


def make_model() -> nn.Module:
    """Sizes that no partition boundary respects, a frozen layer, and a parameter never used."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 11), nn.Linear(11, 5))
    model[2].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.randn(6)))
    return model


def make_penalty(model: nn.Module, identity: bool) -> Penalty:
    generator = torch.Generator().manual_seed(1)
    anchor = {
        n: p.detach() + 0.3 * torch.randn(p.shape, generator=generator)
        for n, p in model.named_parameters()
    }
    fisher = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    return Penalty(LAM, anchor, None if identity else fisher)


def batches(world: int, accumulation: int) -> Tensor:
    """Inputs [steps, accumulation, ranks, batch, 7]; targets are made of them."""
    generator = torch.Generator().manual_seed(2)
    return 3 * torch.randn(STEPS, accumulation, world, MICRO_BATCH, 7, generator=generator)


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return (model(inputs) - inputs[:, :5].sin()).square().sum(1).mean()


def bare_loop(options: OptimizerRecipe, clip: float, data: Tensor, identity: bool):
    """torch's optimizer on one process: clip the task's gradient, then add the penalty's."""
    model = make_model()
    penalty = make_penalty(model, identity)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    names = {"adamw": ("betas", "eps"), "sgd": ("momentum",)}[options.name]
    optimizer = kinds[options.name](
        parameters,
        lr=options.lr,
        weight_decay=options.weight_decay,
        **{name: getattr(options, name) for name in names},
    )

    def value() -> Tensor:
        total = torch.zeros(())
        for name, parameter in named.items():
            fisher = 1.0 if penalty.fisher is None else penalty.fisher[name]
            pull = fisher * (parameter - penalty.anchor[name]).square()
            total = total + penalty.lam / 2 * pull.sum()
        return total

    for step in data:
        optimizer.zero_grad()
        loss_of(model, step.flatten(0, 2)).backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        value().backward()
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}, value().item()


def initialize(model: nn.Module, optimizer, stage: int, clip: float, data: Tensor):
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": MICRO_BATCH,
            "gradient_accumulation_steps": data.shape[1],
            "gradient_clipping": clip,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        },
    )
    return engine


def deepspeed_loop(options: OptimizerRecipe, stage: int, clip: float, data: Tensor, identity: bool):
    model = make_model()
    penalty = make_penalty(model, identity)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = build(named, options, penalty)
    engine = initialize(model, optimizer, stage, clip, data)
    attach(engine, penalty)
    for step in data:
        for inputs in step[:, dist.get_rank()]:
            engine.backward(loss_of(engine, inputs))
            engine.step()
    penalty_now = track(engine)
    assert penalty_now is not None
    value = penalty_now()
    weights = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    engine.destroy()
    return weights, value


def refuses_round_robin() -> str:
    """The refusal of `attach` where it cannot follow a configuration's partitions."""
    model = make_model()
    penalty = make_penalty(model, identity=False)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build(named, OptimizerRecipe(), penalty),
        config={
            "train_micro_batch_size_per_gpu": MICRO_BATCH,
            "zero_optimization": {"stage": 1, "round_robin_gradients": True},
            "zero_allow_untested_optimizer": True,
        },
    )
    try:
        attach(engine, penalty)
    except ValueError as error:
        return str(error)
    return "accepted"


def main() -> None:
    torch.set_num_threads(1)
    ranks.start("cpu")  # without an operator that DeepSpeed would compile for a minute
    results: dict[str, object] = {}
    choices = (("adamw", "sgd"), (0, 1), (1, 3), (0.0, 0.5), (False, True))
    for places in itertools.product((0, 1), repeat=len(choices)):
        if sys.argv[2] == "half" and sum(places) % 2:
            continue
        chosen = (values[k] for values, k in zip(choices, places, strict=True))
        name, stage, accumulation, clip, identity = chosen
        options = OptimizerRecipe(name=name, lr=0.02, weight_decay=0.1)
        data = batches(dist.get_world_size(), accumulation)
        expected, expected_value = bare_loop(options, clip, data, identity)
        actual, value = deepspeed_loop(options, stage, clip, data, identity)
        error = max(((actual[n] - w).norm() / w.norm()).item() for n, w in expected.items())
        label = f"{name} stage {stage} accumulation {accumulation} clip {clip} {identity=}"
        results[label] = [error, abs(value / expected_value - 1)]
    results["round_robin"] = refuses_round_robin()
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    ranks.stop()


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main()
