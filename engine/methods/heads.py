"""Fits a linear head to its optimum on fixed features.

For features x_n, labels y_n and the head's initial values W0 [C, D] and b0 [C], `fit` minimises

    1/N sum_n CE(W x_n + b, y_n) + l2/2 (||W - W0||^2 + ||b - b0||^2)

in nats, by full-batch L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, chapters 3 and
7). The objective is strongly convex, so it has one optimum. At a gradient norm of g it exceeds its
minimum by at most g^2 / (2 l2). The bias is penalised too, and the fit runs in float64: with an
unpenalised bias or float32, g stayed at 1e-5 or more on emoji-RIB's upstream features.

Outputs outside the mask keep their initial values. The probability of a class with several outputs
is the sum over its outputs (`engine.data.masks.summed`). The objective is then not convex, and
`fit` ends at a stationary point.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data import masks
from engine.errors import DivergedError
from loaders.batches import has_room, on_device

log = logging.getLogger(__name__)
EXCESS = 1e-10  # nats by which a fitted objective may exceed its minimum
MOST_ITERATIONS = 1000
_STRIDE = 20  # iterations between two checks of the gradient
_CHUNK = 8192  # images per forward pass of the head
_HISTORY = 20  # L-BFGS's history: pairs of vectors, each as large as the head


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The data and the penalty of a fit.

    features_ND: float32, on the CPU, memory-mapped.
    labels_N: int64, in the head's order, on the head's device.
    rows_n: int64, on the CPU, the training images.
    l2: weight of the penalty, > 0.
    mask_C: bool, True for the outputs to fit, or None for all.
    members_GM: int64, the outputs of each class, or None.
    """

    features_ND: Tensor
    labels_N: Tensor
    rows_n: Tensor
    l2: float
    mask_C: Tensor | None = None
    members_GM: Tensor | None = None


def _parts(problem: Problem, device: torch.device) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """A function that iterates over features and labels on the device, `_CHUNK` images at a time.

    If they fit in the device's memory, they stay there: a fit reads them some hundred times.
    """
    rows = problem.rows_n.split(_CHUNK)
    labels = [problem.labels_N[part.to(device)] for part in rows]

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for part, labels_b in zip(rows, labels, strict=True):
            yield on_device(problem.features_ND[part], device), labels_b

    if not has_room(len(problem.rows_n) * problem.features_ND[:1].nbytes, device):
        return read
    held = list(read())
    return lambda: held


def fit(head: nn.Linear, problem: Problem, label: str) -> dict[str, float]:
    """Fit a head in place, with the same result on every rank.

    Returns `iterations`, the objective (`loss`, in nats), `gradient_norm` and `tolerance`, the norm
    at which the fit stops. Logs a warning with `label` if the fit does not reach it. Raises
    DivergedError if the objective is not finite.
    """
    first = [head.weight.detach().double(), head.bias.detach().double()]
    weight, bias = (tensor.clone().requires_grad_() for tensor in first)
    parts = _parts(problem, weight.device)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STRIDE,
        max_eval=100 * _STRIDE,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        pull = sum(((x - x0) ** 2).sum() for x, x0 in zip((weight, bias), first, strict=True))
        total = problem.l2 / 2 * torch.as_tensor(pull)
        total.backward()
        for features_bD, labels_b in parts():
            logits_bC = F.linear(features_bD.double(), weight, bias)
            logits_bC = masks.summed(logits_bC, problem.members_GM)
            if problem.mask_C is not None:
                logits_bC = logits_bC.masked_fill(~problem.mask_C, -torch.inf)
            losses = F.cross_entropy(logits_bC, labels_b, reduction="sum")
            part = losses / len(problem.rows_n)
            part.backward()
            total = total + part
        return total.detach()

    def check() -> tuple[float, float]:
        loss = objective().item()
        assert weight.grad is not None and bias.grad is not None
        return loss, math.hypot(weight.grad.norm(), bias.grad.norm())

    tolerance = math.sqrt(2 * problem.l2 * EXCESS)
    iterations = 0
    loss, gradient_norm = check()
    while gradient_norm > tolerance and iterations < MOST_ITERATIONS:
        optimizer.step(objective)  # type: ignore[arg-type]  # its stub wants floats; tensors work
        iterations += _STRIDE
        loss, gradient_norm = check()
    if not math.isfinite(loss + gradient_norm):
        raise DivergedError(
            f"{label}: the head's loss is {loss} and its gradient norm {gradient_norm}; check that "
            "the backbone's weights are finite and not too large"
        )
    if gradient_norm > tolerance:
        log.warning(
            f"{label}: the head has not converged. After {iterations} iterations its gradient norm "
            f"is {gradient_norm:.1e}, above {tolerance:.1e}; a larger l2 converges sooner"
        )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return {
        "iterations": iterations,
        "loss": loss,
        "gradient_norm": gradient_norm,
        "tolerance": tolerance,
    }
