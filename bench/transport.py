"""Optimal transport between two labelled sets, from features to a value, the cost included.

    solve       certified to a relative gap of 1e-4; POT's Sinkhorn with as many iterations as bring
                its dual value within 1e-4, known in advance and unchecked; POT's as its users call
                it, which stops by its own rule; and on a GPU flash-sinkhorn's, whose TF32 products
                need a wider margin, 1e-3
    iteration   a sweep over 16-bit costs; two products with a stored kernel
    nuclear     on a GPU, norms of many matrices by products; torch's eigenvalues

eps is 0.05 of the mean cost. Times on the CPU are processor time, each side on one thread. On a GPU
POT computes there too, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.contest import Contest, Entrant, Scale, tried
from kernels.transport.alternating import Potentials
from kernels.transport.bures import ERROR as NUCLEAR_ERROR
from kernels.transport.bures import class_gaussians, nuclear_norms
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport
from kernels.transport.store import store
from kernels.transport.sweep import sinkhorn_sweep

EPS, ERROR, TF32_ERROR = 0.05, 1e-4, 1e-3
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
        x, y = (class_gaussians(x, labels, classes).means for x, labels in samples)
        self.table = torch.cdist(x, y).square()
        self.eps = EPS * self.cost().mean

    def cost(self) -> GroundCost:
        labels_x, labels_y = self.labels
        return GroundCost(*self.features, labels_x=labels_x, labels_y=labels_y, table=self.table)

    def solve(self) -> float:
        result = transport(self.cost(), eps=self.eps, tolerance=ERROR)
        assert result.converged, f"not certified: gap {result.gap:.2g}"
        return result.value

    def dense(self, dtype: torch.dtype = torch.float64) -> Any:
        """The cost [n, n] as POT's users build it: a NumPy array, or on a GPU a tensor."""
        import ot

        tensors = [part.to(dtype) for part in (*self.features, self.table)] + self.labels
        x, y, table, labels_x, labels_y = (
            part if part.is_cuda else part.numpy() for part in tensors
        )
        return ot.dist(x, y) + table[labels_x][:, labels_y]


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    if device.type == "cuda":
        sizes = [(50_000, 1000)]
    else:
        sizes = [(5000, 100), (5000, 1000)] + [(10_000, 100)] * scale.full
    with ExitStack() as one_thread:
        one_thread.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        with suppress(ImportError):
            from threadpoolctl import threadpool_limits

            one_thread.enter_context(threadpool_limits(1))  # NumPy's BLAS has threads of its own
        for n, classes in [(150, 10)] if scale.quick else sizes:
            problem = Problem(n, classes, device)
            yield from _solves(problem)
        yield _iteration(problem)
        if device.type == "cuda":
            yield _nuclear(device)


def _solves(problem: Problem) -> Iterator[Contest]:
    k = _textbook(problem)

    def pot(dtype: torch.dtype, words: str, options: Mapping[str, Any]) -> Entrant:
        import ot

        def solve() -> Any:
            cost = problem.dense(dtype)
            weights = ot.unif(problem.n, type_as=cost)
            return ot.bregman.sinkhorn_knopp(
                weights, weights, cost, problem.eps, warn=False, **options
            )

        return Entrant(f"POT, {str(dtype).removeprefix('torch.')}, {words}", solve)

    def contest(dtypes: Sequence[torch.dtype], *rule: Any, **options: Any) -> Contest:
        peers = [peer for dtype in dtypes for peer in tried("POT", partial(pot, dtype, *rule))]
        name = f"solve, {problem.n}, {problem.classes} classes"
        ours = Entrant("transport, certified", problem.solve)
        return Contest(name, ours, tuple(peers), processor_time=True, **options)

    bound = {"numItermax": k, "stopThr": 0.0}
    dtypes = (torch.float32,) if problem.table.is_cuda else (torch.float64, torch.float32)
    yield contest(dtypes, f"{k} iterations", bound, rounds=3)
    yield contest(dtypes[:1], "its own rule", {}, rounds=1, warm=False)
    if problem.table.is_cuda and (peers := tried("flash-sinkhorn", partial(flash, problem, k))):
        ours = Entrant("transport, certified", problem.solve)
        name = f"solve in TF32, {problem.n}, {problem.classes} classes"
        yield Contest(name, ours, tuple(peers), rounds=3)


def flash(problem: Problem, iterations: int) -> Entrant:
    """flash-sinkhorn's solver with `iterations`, doubled until its value is ours within
    `TF32_ERROR`. Raises ValueError if eight times as many are too few."""
    from flash_sinkhorn import SamplesLoss  # pyright: ignore[reportMissingImports]

    (x, y), (labels_x, labels_y) = problem.features, problem.labels
    expected = problem.solve()
    for n in (iterations, 2 * iterations, 4 * iterations, 8 * iterations):
        loss = SamplesLoss(
            eps=problem.eps,
            n_iters=n,
            use_epsilon_scaling=False,
            label_cost_matrix=problem.table,
            lambda_y=1.0,
        )
        solve = partial(loss, x, y, label_x=labels_x, label_y=labels_y)
        if abs(value := float(solve()) / expected - 1) <= TF32_ERROR:
            return Entrant(f"flash-sinkhorn, {n} iterations", solve)
    raise ValueError(f"its value differs from ours by {value:.1%} after {n} iterations")


def _textbook(problem: Problem) -> int:
    """Iterations that bring textbook Sinkhorn within the error, between the certified bounds."""
    certified = transport(problem.cost(), eps=problem.eps, tolerance=ERROR)
    n, cost = problem.n, problem.cost()
    kernel = torch.empty(n, n, dtype=torch.float64, device=problem.table.device)
    for rows, part in cost.strips(256):
        kernel[rows] = part.double().div_(-problem.eps).exp_()
    u = kernel.new_full((n,), 1 / n)
    for k in range(1, 1000):
        v = 1 / (n * (u @ kernel))
        u = 1 / (n * (kernel @ v))
        dual = problem.eps * float((u.log() + v.log()).mean() + 2 * math.log(n))
        if dual >= (1 - ERROR) * certified.value:
            assert dual <= certified.upper, f"{dual} is above the bound {certified.upper}"
            return k
    raise AssertionError("textbook Sinkhorn does not get to our value in 1000 iterations")


def _iteration(problem: Problem) -> Contest:
    stored = store(problem.cost(), torch.int16)
    q = stored.q
    assert q is not None, "the copy does not fit"
    potentials = Potentials(stored, symmetric=False, max_iterations=10**9)
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


def _nuclear(device: torch.device) -> Contest:
    x = torch.randn(1000, 48, 48, device=device, dtype=torch.float64)
    matrices = x + x.mT

    def eigenvalues() -> Tensor:
        return torch.linalg.eigvalsh(matrices).abs().sum(-1)

    def check() -> None:
        actual = nuclear_norms(matrices)
        torch.testing.assert_close(actual, eigenvalues(), rtol=NUCLEAR_ERROR, atol=0)

    ours = Entrant("by products", lambda: nuclear_norms(matrices))
    peers = (Entrant("eigvalsh", eigenvalues),)
    return Contest("nuclear norms, 1000 of 48 x 48", ours, peers, check, rounds=3)
