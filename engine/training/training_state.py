"""All that an optimizer step changes, as whole tensors by name.

Names are those of parameters, so that a state can be taken on one number of ranks and restored on
another: what ZeRO cut is put together, and cut again as `engine.training.shards` says. A method's
state is its parameters and buffers, trained or not; a plain attribute is no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.machine import ranks
from engine.methods.base import Trained
from engine.training import shards

MODULE, OPTIMIZER, RANDOM, SUMS = "module/", "optimizer/", "random/", "sums/"


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU. From a GPU it is queued, into page-locked memory, and not awaited."""
    return tensor.detach().to("cpu", non_blocking=True, copy=True)


class TrainingState:
    """The state of a method, its optimizer, torch's random generators and running sums.

    Make it before the first step: a parameter that a method adds later is no part of it.
    """

    def __init__(
        self,
        engine: Any,
        method: Trained,
        sums: Mapping[str, Tensor],
    ) -> None:
        """sums: scalars on the engine's device, of this rank; another number of ranks goes on from
        their mean."""
        self._module = dict(method.named_parameters()) | dict(method.named_buffers())
        self._trained = shards.trained(engine)
        self._pieces = shards.pieces(engine)
        self._optimizer = shards.inner(engine)
        self._is_sharded = self._optimizer is not engine.optimizer
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
        optimizer = self._gathered() if self._is_sharded else self._as_held()
        for key, name, tensor in optimizer:
            yield f"{OPTIMIZER}{key}/{name}", tensor
        for name, generator in self._generators().items():
            yield RANDOM + name, _of_ranks(generator.get_state().to(self.device))
        for name, value in self._sums.items():
            yield SUMS + name, _of_ranks(value)

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"cpu": torch.default_generator}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.default_generators[self.device.index]
        return generators

    def _as_held(self) -> Iterator[tuple[str, str, Tensor]]:
        for holder, (piece,) in self._pieces.items():
            for key, tensor in _state_of(self._optimizer, holder).items():
                yield key, piece.name, tensor

    def _gathered(self) -> Iterator[tuple[str, str, Tensor]]:
        """The optimizer's state, put together by DeepSpeed, a tensor at a time."""
        from deepspeed.utils import safe_get_full_optimizer_state  # late, as in `loop.initialize`

        keys = _state_of(self._optimizer, next(iter(self._pieces)))  # on every rank the same
        for name, parameter in self._trained.items():
            for key, like in keys.items():
                is_count = like.dim() == 0  # of steps, the same on every rank
                whole = like if is_count else safe_get_full_optimizer_state(parameter, key)
                assert whole is not None, name
                yield key, name, whole

    def _restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """By hand: DeepSpeed's setters know the optimizer's state only after a first step."""
        by_parameter: dict[str, dict[str, Tensor]] = {name: {} for name in self._trained}
        for label, tensor in state.items():
            if label.startswith(OPTIMIZER):
                key, _, name = label.removeprefix(OPTIMIZER).partition("/")
                by_parameter[name][key] = tensor
        held: dict[Tensor, dict[str, Tensor]] = {}
        for holder, pieces in self._pieces.items():
            entries = held[holder] = {}
            for piece in pieces:
                for key, whole in by_parameter[piece.name].items():
                    if whole.dim() == 0:
                        entries[key] = whole.clone()  # else it would map the whole file
                    else:
                        if key not in entries:  # laid out as the optimizer would lay it out
                            entries[key] = torch.zeros_like(
                                holder, dtype=whole.dtype, requires_grad=False
                            )
                        piece.inside(entries[key]).copy_(piece.cut(whole))
                if self._is_sharded:  # it steps a copy of the parameters
                    piece.inside(holder).copy_(piece.cut(self._trained[piece.name]))
        content = self._optimizer.state_dict()
        order = [tensor for group in self._optimizer.param_groups for tensor in group["params"]]
        content["state"] = {n: held[t] for n, t in enumerate(order) if held.get(t)}
        self._optimizer.load_state_dict(content)


def _state_of(optimizer: Any, holder: Tensor) -> dict[str, Tensor]:
    """Its tensors; SGD without momentum has an entry that is None."""
    state = optimizer.state.get(holder, {})
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _of_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors as rows, in the order of the ranks."""
    if ranks.world() == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(ranks.world())]
    dist.all_gather(rows, tensor)
    return torch.stack(rows)
