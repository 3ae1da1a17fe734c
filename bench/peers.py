"""Peers that may be missing or unable to run: built with their contest, or skipped by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contest import Entrant

SKIPPED: list[str] = []  # peers of the case that runs, each with its reason


def optional(module: str, name: str | None = None) -> Any:
    """A module or a name of it, or None and a line with the reason, where it does not load."""
    try:
        loaded = importlib.import_module(module)
        return loaded if name is None else getattr(loaded, name)
    except (ImportError, AttributeError) as error:
        skipped(".".join(filter(None, (module, name))), error)
        return None


def skipped(peer: str, why: object) -> None:
    """Says that a peer cannot run, and why in one line; `SKIPPED` keeps it for the JSON."""
    SKIPPED.append(f"{peer} ({(str(why) or repr(why)).splitlines()[0]})")
    print(f"peer skipped: {SKIPPED[-1]}")


def tried(peer: str, build: Callable[[], Entrant]) -> list[Entrant]:
    """The peer that `build` makes and runs once; none, said by name, where it raises.

    Some packages compile on first use, and fail there rather than on import.
    """
    try:
        return [build()]
    except Exception as error:
        skipped(peer, error)
        return []


def avalanche_penalty(
    model: nn.Module, anchor: Tensor, fisher: Tensor, lam: float
) -> Callable[[], Tensor] | None:
    """Avalanche's EWC term, lam / 2 * sum F (theta - anchor)^2, as its plugin adds it to a loss.

    anchor and fisher: flat [P], in the order of the model's parameters.
    """
    kind = optional("avalanche.training.plugins", "EWCPlugin")
    if kind is None:
        return None
    from avalanche.training.utils import ParamData  # pyright: ignore[reportMissingImports]

    plugin = kind(lam / 2)
    sizes = [p.numel() for p in model.parameters()]
    for by_task, flat in ((plugin.saved_params, anchor), (plugin.importances, fisher)):
        by_task[0] = {
            name: ParamData(name, init_tensor=part.view(p.shape).clone(), device=p.device)
            for (name, p), part in zip(model.named_parameters(), flat.split(sizes), strict=True)
        }

    def penalty() -> Tensor:
        loss = torch.zeros((), device=anchor.device)
        clock = SimpleNamespace(train_exp_counter=1)
        strategy = SimpleNamespace(clock=clock, device=anchor.device, model=model, loss=loss)
        plugin.before_backward(strategy)
        return strategy.loss

    return penalty


def avalanche_fisher(
    model: nn.Module, images: Tensor, labels: Tensor
) -> Callable[[], dict[str, Any]] | None:
    """Avalanche's importances. It squares a batch's mean gradient: with batches of one image, that
    is the empirical Fisher."""
    kind = optional("avalanche.training.plugins", "EWCPlugin")
    if kind is None:
        return None
    plugin = kind(1.0)
    dataset = [(image, label, 0) for image, label in zip(images, labels, strict=True)]
    # Gradients stay the views of a flat buffer that they are.
    optimizer = SimpleNamespace(zero_grad=lambda: model.zero_grad(set_to_none=False))

    def importances() -> dict[str, Any]:
        fisher = plugin.compute_importances(
            model, F.cross_entropy, optimizer, dataset, images.device, batch_size=1
        )
        model.eval()
        return fisher

    return importances
