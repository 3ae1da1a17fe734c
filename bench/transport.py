"""Optimal transport between two labelled sets, from features to a value, the cost included.

    solve       certified to a relative gap of 1e-4; POT's Sinkhorn with as many iterations as bring
                its dual value within 1e-4, and no check between them
    bracket     the unregularised value to 1e-3; POT's exact network simplex
    iteration   a sweep over 16-bit costs; two products with a stored kernel
    debiased    on a GPU: certified to 1e-4; flash-sinkhorn, with how far that is off in its name

eps is 0.05 of the mean cost. Times on the CPU are processor time, each side on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.contest import Contest, Entrant, Scale, tried
from kernels.transport.alternating import Potentials
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import Divergence, debiased, transport, unregularised
from kernels.transport.store import store
from kernels.transport.sweep import sinkhorn_sweep

EPS, ERROR, BRACKET = 0.05, 1e-4, 1e-3
DIMENSION = 768


class Problem:
    """Two samples of n from mixtures whose spectrum decays as 1 / k, classes drawn at random.

    The second has its classes moved, as another style of the same concepts would. The table holds
    distances of means: what is in it costs a solver nothing.
    """

    def __init__(self, n: int, classes: int, device: torch.device, *, d: int = DIMENSION) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, d + 1) ** -0.5
        centres = torch.randn(classes, d, generator=generator) * scale
        self.n, self.classes = n, classes
        self.features, self.labels = [], []
        for k in range(2):
            labels = torch.randint(classes, (n,), generator=generator)
            labels[:classes] = torch.arange(classes)
            moved = centres + 0.5 * k * torch.randn(classes, d, generator=generator) * scale
            noise = torch.randn(n, d, generator=generator)
            self.features.append((moved[labels] + 0.7 * noise * scale).to(device))
            self.labels.append(labels.to(device))
        samples = zip(self.features, self.labels, strict=True)
        gaussians = [class_gaussians(x, labels, classes) for x, labels in samples]
        pairs = {(0, 1): gaussians, (0, 0): gaussians[:1], (1, 1): gaussians[1:]}
        self.tables = {
            sides: bures_squared(pair[0], pair[1] if len(pair) > 1 else None, means_only=True)
            for sides, pair in pairs.items()
        }
        self.eps = EPS * self.cost().mean

    def cost(self, left: int = 0, right: int = 1) -> GroundCost:
        labels = {"labels_x": self.labels[left], "labels_y": self.labels[right]}
        table = self.tables[left, right]
        return GroundCost(self.features[left], self.features[right], **labels, table=table)

    def solve(self) -> float:
        result = transport(self.cost(), eps=self.eps, tolerance=ERROR)
        assert result.converged, f"not certified: gap {result.gap:.2g}"
        return result.value

    def dense(self, dtype: str = "float64") -> np.ndarray:
        """The cost as POT's users build it."""
        import ot

        x, y = (features.numpy().astype(dtype) for features in self.features)
        labels_x, labels_y = (labels.numpy() for labels in self.labels)
        return ot.dist(x, y) + self.tables[0, 1].numpy().astype(dtype)[labels_x][:, labels_y]


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        from threadpoolctl import threadpool_limits

        limits = threadpool_limits(1)  # NumPy's BLAS has threads of its own
    except ImportError:
        limits = nullcontext()
    try:
        with limits:
            yield from _on_gpu(device, scale) if device.type == "cuda" else _on_cpu(device, scale)
    finally:
        torch.set_num_threads(threads)


def _on_cpu(device: torch.device, scale: Scale) -> Iterator[Contest]:
    sizes = [(5000, 100), (5000, 1000)] + [(10_000, 100)] * scale.full
    for n, classes in [(150, 10)] if scale.quick else sizes:
        problem = Problem(n, classes, device)
        yield _solve(problem)
    yield _iteration(problem)
    yield _bracket(Problem(100, 10, device) if scale.quick else Problem(1000, 100, device))


def _on_gpu(device: torch.device, scale: Scale) -> Iterator[Contest]:
    problem = Problem(*((500, 10) if scale.quick else (50_000, 1000)), device)
    yield _iteration(problem)
    yield from _debiased(problem)


def _solve(problem: Problem) -> Contest:
    k = _textbook(problem)

    def pot(dtype: str) -> Entrant:
        import ot

        weights = np.full(problem.n, 1 / problem.n, dtype)
        options = {"numItermax": k, "stopThr": 0.0, "warn": False}
        solve = partial(ot.bregman.sinkhorn_knopp, weights, weights, reg=problem.eps, **options)
        return Entrant(f"POT, {dtype}, {k} iterations", lambda: solve(M=problem.dense(dtype)))

    peers = [entrant for dtype in ("float64", "float32")
             for entrant in tried(f"POT, {dtype}", partial(pot, dtype))]  # fmt: skip
    return Contest(
        f"solve, {problem.n}, {problem.classes} classes",
        Entrant("transport, certified", problem.solve),
        tuple(peers),
        rounds=3,
        processor_time=True,
    )


def _textbook(problem: Problem) -> int:
    """Iterations that bring textbook Sinkhorn within the error, between the certified bounds."""
    certified = transport(problem.cost(), eps=problem.eps, tolerance=ERROR)
    n, cost = problem.n, problem.cost()
    kernel = torch.empty(n, n, dtype=torch.float64)
    for rows, part in cost.strips(256):
        kernel[rows] = part.double().div_(-problem.eps).exp_()
    u = torch.full((n,), 1 / n, dtype=torch.float64)
    for k in range(1, 1000):
        v = 1 / (n * (u @ kernel))
        u = 1 / (n * (kernel @ v))
        dual = problem.eps * float((u.log() + v.log()).mean() + 2 * math.log(n))
        if dual >= (1 - ERROR) * certified.value:
            assert dual <= certified.upper, f"{dual} is above the bound {certified.upper}"
            return k
    raise AssertionError("textbook Sinkhorn does not get to our value in 1000 iterations")


def _bracket(problem: Problem) -> Contest:
    def ours() -> float:
        bracket = unregularised(problem.cost(), tolerance=BRACKET)
        assert bracket.converged, f"the bracket is {bracket.gap:.1e} wide"
        return bracket.value

    def exact() -> float:
        import ot

        weights = np.full(problem.n, 1 / problem.n)
        value: Any = ot.emd2(weights, weights, problem.dense(), numItermax=10**7)
        return float(value)

    def check() -> None:
        assert abs(ours() / exact() - 1) <= BRACKET

    subject, peer = Entrant("unregularised", ours), Entrant("POT emd, exact", exact)
    name = f"bracket, {problem.n}"
    return Contest(name, subject, (peer,), check, rounds=3, processor_time=True)


def _iteration(problem: Problem) -> Contest:
    stored = store(problem.cost(), torch.int16)
    q = stored.q
    assert q is not None, "the copy does not fit"
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=10**9)
    potentials.solve(problem.eps, 0.1)
    f = ((potentials.f - stored.offset) / problem.eps).float()
    g = (potentials.g / problem.eps - math.log(problem.n)).float()
    kappa = (stored.step / problem.eps).float()
    dtype = torch.bfloat16 if q.is_cuda else torch.float32
    kernel = torch.empty(q.shape, dtype=dtype, device=q.device)
    for rows, part in stored.strips(256):
        kernel[rows] = part.div_(-problem.eps).exp_().to(dtype)
    u = torch.ones(problem.n, dtype=dtype, device=q.device)
    reads = 2 if q.is_cuda else 1
    return Contest(
        f"iteration, {problem.n}",
        Entrant("sweep", lambda: sinkhorn_sweep(q, f, g, kappa), bytes=reads * q.nbytes),
        (Entrant("two products", lambda: kernel.T @ (1 / (kernel @ u)), bytes=2 * kernel.nbytes),),
        processor_time=True,
    )


def _debiased(problem: Problem) -> Iterator[Contest]:
    def solve_all() -> Divergence:
        solve = partial(transport, eps=problem.eps, tolerance=ERROR / 3)
        terms = [solve(problem.cost(k, k), symmetric=True) for k in range(2)]
        result = debiased(solve(problem.cost()), *terms, tolerance=ERROR)
        assert result.converged, f"not certified: gap {result.gap:.2g}"
        return result

    def flash_sinkhorn() -> Entrant:
        from flash_sinkhorn import SamplesLoss  # pyright: ignore[reportMissingImports]

        # Its label distances are one square matrix, the second set's classes after the first's.
        tables = problem.tables
        halves = [tables[0, 0], tables[0, 1]], [tables[0, 1].T, tables[1, 1]]
        table = torch.cat([torch.cat(half, 1) for half in halves])
        blur, weights = math.sqrt(problem.eps), {"lambda_x": 1.0, "lambda_y": 1.0}
        loss = SamplesLoss("sinkhorn", blur=blur, debias=True, label_cost_matrix=table.float(),
                           **weights)  # fmt: skip
        labels_x, labels_y = problem.labels
        labels = {"label_x": labels_x, "label_y": labels_y + problem.classes}
        run = partial(loss, *problem.features, **labels)
        return Entrant(f"flash-sinkhorn, off {abs(float(run()) / solve_all().value - 1):.0e}", run)

    for peer in tried("flash-sinkhorn", flash_sinkhorn):
        yield Contest(f"debiased, {problem.n}", Entrant("debiased", solve_all), (peer,), rounds=3)
