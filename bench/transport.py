"""Entropic transport from two labelled sets to a value, the kernel's build included, against POT,
geomloss and OTT; and the bracket of the unregularised problem against exact network simplex. On a
GPU one iteration and a whole solve are timed against two products with a stored bf16 kernel, and a
debiased and certified value against flash-sinkhorn's, with how far that is off in its name.

Every solver is told how many iterations bring its potential within 1e-4 of the certified value, and
is timed with just that many and no checks between (geomloss, which anneals, with the first of 10,
20, 40, 70 and 100 that does). At 10,000 samples POT's solvers that are safe at small eps are given
20 iterations, and geomloss 40: "20 of 72" is a lower bound of a time, and its ratio an upper one.
The error is that of the dual value with exact rows, so that no
solver pays for its own formula of the value. Times on the CPU are processor time of all
threads together, torch on one. In units of n m, for d dimensions: the product is 2 d FLOPs (twice
that in float64); our iteration reads 2 bytes (twice on a GPU), one of two products with a kernel
8 (16), and a log-domain update makes about six passes over 4 (8). OTT's threads are XLA's own and
are not pinned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bench import peers
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from bench.transport_problem import EPS, Problem
from bench.transport_solvers import (
    Solver,
    geomloss,
    iterate,
    ott,
    ours,
    pot,
    read_by_a_sweep,
    two_products,
)
from kernels import reference
from kernels.transport.alternating import Potentials
from kernels.transport.certificate import certify
from kernels.transport.sinkhorn import Divergence, debiased, transport, unregularised
from kernels.transport.store import StoredCost, store
from kernels.transport.sweep import sinkhorn_sweep

KERNELS = tuple(
    f"transport.{name}"
    for name in (
        *("sweep", "sinkhorn", "certificate", "certified_pass"),
        *("alternating", "anderson", "cost", "store", "quantize"),
    )
)
ERROR = 1e-4  # of the entropic value
_TARGETED = 10_000  # samples at which the targets hold
_STEPS = 20  # of peers that would take minutes at that size


def gate(device: torch.device) -> None:
    """Sweeps against float64, on the path that is timed; values against a log-domain loop."""
    generator = torch.Generator().manual_seed(0)
    shape = (2048, 2100)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(torch.int16)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    expected = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double())
    inputs = q.to(device), f.to(device), g.to(device), kappa.to(device)
    results = sinkhorn_sweep(*inputs)
    for actual, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.cpu().double(), exact, rtol=2e-5, atol=2e-5)
    cost = Problem(2100, 10, device, d=16).cost()
    copied = store(cost)
    for rows, part in copied.parts():
        restored = copied.offset[rows, None] + copied.step[rows, None] * part
        off = (restored - cost.rows(rows.start, rows.stop)).abs().amax(1)
        assert (off <= 0.6 * copied.step[rows]).all(), "the copy is not the cost"
    cost = Problem(150, 10, device, d=16).cost()
    eps = EPS * cost.mean
    value = reference.entropic_transport(cost.rows(0, 150).cpu(), eps, 2000)[2]
    solved = transport(cost, eps=eps)
    assert solved.lower <= value * (1 + 1e-12) and value <= solved.upper, "a bound does not hold"
    assert abs(solved.value - value) <= 1e-4 * value, f"{solved.value}, not {value}"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    limits = peers.optional("threadpoolctl", "threadpool_limits")
    try:
        # NumPy's BLAS has threads of its own, whose waiting would count as a peer's time.
        with nullcontext() if limits is None else limits(1):
            yield from _contests(device, scale)
    finally:
        torch.set_num_threads(threads)


def _contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    if device.type == "cuda":
        problem = Problem(*((500, 10) if scale.quick else (50_000, 1000)), device)
        yield _gemv(problem, torch.bfloat16)
        yield from _solves(problem, log_domain=False)
        yield from _debiased(problem)
        return
    sizes = (150,) if scale.quick else (2000, 5000, 10_000) if scale.full else (2000, 5000)
    yield _gemv(Problem(sizes[-1], 100, device), torch.float32)
    for n in sizes:
        problem = Problem(n, 10 if scale.quick else 100, device)
        yield from _solves(problem, log_domain=n <= 2000 or n >= _TARGETED)
    if scale.full:
        yield from _solves(Problem(5000, 1000, device), log_domain=False)
    for n in (100,) if scale.quick else (1000, _TARGETED) if scale.full else (1000,):
        yield from _bracket(Problem(n, 10 if scale.quick else 100, device))


def _solves(problem: Problem, *, log_domain: bool) -> Iterator[Contest]:
    name = f"{problem.n}, {len(problem.table)} classes"
    certified = transport(problem.cost(), eps=problem.eps, tolerance=ERROR)
    assert certified.converged, f"not certified: gap {certified.gap:.2g}"
    stored = store(problem.cost())

    def error(g: Tensor) -> float:
        dual = certify(stored, g, problem.eps, torch.ones_like(g)).dual
        return abs(dual / certified.value - 1)

    def entrant(solver: Solver, steps: Sequence[int], most: int | None = None) -> Entrant:
        k = steps[0]
        if most is not None and most < k:
            label, k = f"{solver.name}, {most} of {k}", most
        else:
            for k in steps:
                if (off := error(solver.solve(k))) <= ERROR:
                    break
            label = f"{solver.name}, {k}" + ("" if off <= ERROR else f": off {off:.0e}")
        work = solver.build + Work(solver.each.bytes * k, solver.each.flops * k)
        target = solver.target if problem.n >= _TARGETED else None
        return Entrant(label, partial(solver.solve, k), work, target)

    k = _alternations(stored, problem.eps, certified.value)
    alternating = range(k, k + 3)  # the order of the two updates differs
    k = next(k for k in range(2, 200) if error(iterate(stored, problem.eps, k)) <= ERROR)
    subject = entrant(ours(problem), (k,))
    cuda = stored.offset.is_cuda
    stored_kernel, stable = ([two_products(problem)], []) if cuda else pot(problem)

    def entered(
        solvers: list[Solver], steps: Sequence[int], most: int | None = None
    ) -> tuple[Entrant, ...]:
        tried = (
            peers.tried(solver.name, partial(entrant, solver, steps, most)) for solver in solvers
        )
        return tuple(chain.from_iterable(tried))

    plain = entered(stored_kernel, alternating)
    entrants = plain
    if log_domain:
        slow = problem.n >= _TARGETED
        entrants += entered(stable, alternating, _STEPS if slow else None)
        entrants += entered(ott(problem), alternating)
        entrants += entered(geomloss(problem), (40,) if slow else (10, 20, 40, 70, 100))
    for peer in entrants:
        yield Contest(f"solve {name}", subject, (peer,), rounds=2, processor_time=True)
    work = problem.product + Work(bytes=2 * problem.n**2 * (certified.iterations + 2))
    whole = Entrant(
        "transport", lambda: transport(problem.cost(), eps=problem.eps, tolerance=ERROR), work
    )
    for peer in plain:
        yield Contest(f"certified {name}", whole, (peer,), rounds=2, processor_time=True)


def _debiased(problem: Problem) -> Iterator[Contest]:
    """From features to the certified, debiased value, against flash-sinkhorn at the same eps."""
    module = peers.optional("flash_sinkhorn")
    if module is None:
        return

    def solve_all() -> Divergence:
        solve = partial(transport, eps=problem.eps, tolerance=ERROR / 3)
        self_terms = [solve(problem.self_cost(k), symmetric=True) for k in range(2)]
        across = solve(problem.cost())
        return debiased(across, *self_terms, tolerance=ERROR)

    # Its label distances are one square matrix: classes of the second set come after the first's.
    (first, second), classes = problem.self_tables, len(problem.table)
    table = torch.cat(
        [torch.cat([first, problem.table], 1), torch.cat([problem.table.T, second], 1)]
    )
    loss = module.SamplesLoss(
        "sinkhorn",
        blur=math.sqrt(problem.eps),
        debias=True,
        label_cost_matrix=table.float(),
        lambda_x=1.0,
        lambda_y=1.0,
    )
    (x, y), (labels_x, labels_y) = problem.features, problem.labels

    def flash() -> Tensor:
        return loss(x, y, label_x=labels_x, label_y=labels_y + classes)

    divergence = solve_all()
    assert divergence.converged, f"not certified: gap {divergence.gap:.2g}"
    cells, iterations = problem.n**2, 40
    subject = Work(bytes=3 * 2 * cells * 10, flops=3 * problem.product.flops)
    # It computes the product again in every iteration of its schedule.
    work = Work(flops=3 * iterations * problem.product.flops)

    def peer() -> Entrant:
        off = abs(float(flash()) / divergence.value - 1)
        return Entrant(f"flash-sinkhorn: off {off:.0e}", flash, work)

    for each in peers.tried("flash-sinkhorn", peer):
        yield Contest(
            f"debiased, {problem.n}", Entrant("debiased", solve_all, subject), (each,), rounds=3
        )


def _alternations(stored: StoredCost, eps: float, value: float) -> int:
    """Iterations that bring textbook Sinkhorn within the error, counted on our copy."""
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=10**9)
    n, m = stored.shape
    for k in range(1, 1000):
        log_s, columns = potentials._sweep(potentials.f, eps)
        potentials.f = potentials.f - eps * log_s
        if float(potentials.f.mean() + potentials.g.mean()) >= (1 - ERROR) * value:
            return k - 1
        potentials.g = potentials.g - eps * (columns * (m / n)).log()
    raise AssertionError("textbook Sinkhorn does not get there in 1000 iterations")


def _bracket(problem: Problem) -> Iterator[Contest]:
    ot = peers.optional("ot")
    if ot is None:
        return
    marginal = np.full(problem.n, 1 / problem.n)

    def exact() -> object:
        return ot.emd(marginal, marginal, problem.dense_double(), numItermax=10**7)

    bracket = unregularised(problem.cost(), tolerance=1e-3)
    name = f"bracket 1e-3, {problem.n}"
    if not bracket.converged:
        name += f": MISSED, {bracket.gap:.1e}"
    double = Work(flops=2 * problem.product.flops)
    read = Work(bytes=4 * problem.n**2 * bracket.iterations)
    subject = Entrant("unregularised", lambda: unregularised(problem.cost()), double + read)
    # Network simplex has no prediction but its cost: it takes far longer than that.
    peer = Entrant("POT emd, exact", exact, double + Work(bytes=48 * problem.n**2))
    rounds = 2 if problem.n >= _TARGETED else 3
    yield Contest(name, subject, (peer,), rounds=rounds, processor_time=True)


def _gemv(problem: Problem, dtype: torch.dtype) -> Contest:
    """One iteration: our sweep against two products with a stored kernel."""
    cost = problem.cost()
    stored = store(cost)
    assert stored.q is not None, "the copy does not fit"
    device = stored.q.device
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=10**9)
    potentials.solve(problem.eps, 0.1)
    f = ((potentials.f - stored.offset) / problem.eps).float()
    g = (potentials.g / problem.eps - math.log(problem.n)).float()
    kappa = (stored.step / problem.eps).float()
    kernel = torch.empty(problem.n, problem.n, dtype=dtype, device=device)
    for rows, part in stored.strips(256):
        kernel[rows] = part.div_(-problem.eps).exp_().to(dtype)
    u = torch.ones(problem.n, dtype=dtype, device=device)

    def products() -> Tensor:
        return kernel.T @ (1 / (kernel @ u))

    q = stored.q
    cells, width = problem.n**2, dtype.itemsize
    label = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Contest(
        f"iteration, {problem.n}",
        Entrant(
            "sinkhorn_sweep",
            lambda: sinkhorn_sweep(q, f, g, kappa),
            read_by_a_sweep(problem),
        ),
        (Entrant(f"two GEMVs, {label}", products, Work(2 * width * cells)),),
        processor_time=True,
    )
