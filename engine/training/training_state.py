"""All that an optimizer step changes, as tensors by name.

A method's state is its parameters and buffers, trained or not; a plain attribute is no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.machine import ranks
from engine.methods.base import Trained

MODULE, OPTIMIZER, RANDOM, SUMS = "module/", "optimizer/", "random/", "sums/"


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU. From a GPU it is queued, into page-locked memory, and not awaited."""
    return tensor.detach().to("cpu", non_blocking=True, copy=True)


class TrainingState:
    """The state of a method, its optimizer, torch's random generators and running sums.

    Make it before the first step: a parameter that a method adds later is no part of it.
    """

    def __init__(self, engine: Any, method: Trained, sums: Mapping[str, Tensor]) -> None:
        """sums: scalars on the engine's device, of this rank; another number of ranks goes on from
        their mean."""
        self._module = dict(method.named_parameters()) | dict(method.named_buffers())
        self._optimizer = engine.optimizer
        names = {tensor: name for name, tensor in self._module.items()}
        groups = self._optimizer.param_groups
        self._stepped = {names[p]: p for group in groups for p in group["params"]}
        self.device = engine.device
        self._sums = sums

    @torch.no_grad()
    def copy(self) -> dict[str, Tensor]:
        """The state on the CPU, by name, on the first rank; empty on the rest, which must call it
        too. From a GPU, copies are queued and not awaited (`to_host`)."""
        copies = {}
        for name, tensor in self._tensors():
            if ranks.rank() == 0:
                copies[name] = to_host(tensor)
        return copies

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of `copy`: bit for bit on as many ranks as made it."""
        for name, tensor in self._module.items():
            tensor.copy_(state[MODULE + name])
        self._restore_optimizer(state)
        for name, generator in self._generators().items():
            rows = state.get(RANDOM + name)
            if rows is not None:  # else made on another kind of device
                # A copy: a generator reads a view from the beginning of its memory.
                generator.set_state(rows[ranks.rank() % len(rows)].clone())
        for name, value in self._sums.items():
            rows = state[SUMS + name]
            value.copy_(rows[ranks.rank()] if len(rows) == ranks.world() else rows.mean())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._module.items():
            yield MODULE + name, tensor
        for name, parameter in self._stepped.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if value is not None:  # SGD's momentum where it is 0
                    yield f"{OPTIMIZER}{key}/{name}", value
        for name, generator in self._generators().items():
            yield RANDOM + name, _of_ranks(generator.get_state().to(self.device))
        for name, value in self._sums.items():
            yield SUMS + name, _of_ranks(value)

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"cpu": torch.default_generator}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.default_generators[self.device.index]
        return generators

    def _restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        numbers = {name: number for number, name in enumerate(self._stepped)}
        of_parameters: dict[int, dict[str, Tensor]] = {}
        for label, tensor in state.items():
            if not label.startswith(OPTIMIZER):
                continue
            key, _, name = label.removeprefix(OPTIMIZER).partition("/")
            # A copy, else it would map the whole file; laid out as the optimizer would lay it out.
            like = self._stepped[name].detach() if tensor.dim() else tensor
            value = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            of_parameters.setdefault(numbers[name], {})[key] = value
        content = self._optimizer.state_dict() | {"state": of_parameters}
        self._optimizer.load_state_dict(content)


def _of_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors as rows, in the order of the ranks."""
    if ranks.world() == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(ranks.world())]
    dist.all_gather(rows, tensor)
    return torch.stack(rows)
