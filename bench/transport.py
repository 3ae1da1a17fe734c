"""Entropic transport from two labelled sets to a value, the kernel's build included, against POT,
geomloss and OTT; and the bracket of the unregularised problem against exact network simplex. On a
GPU one iteration and a whole solve are timed against two products with a stored bf16 kernel, and a
debiased and certified value against flash-sinkhorn's, with how far that is off in its name.

Every solver is told how many iterations bring its potential within 1e-4 of the certified value, and
is timed with just that many and no checks between (geomloss, which anneals, with the first of 10,
20, 40, 70 and 100 that does). The error is that of the dual value with exact rows, which forgives a
solver whatever its own formula for the value adds. Times on the CPU are processor time of all
threads together, torch on one. In units of n m, for d dimensions: the product is 2 d FLOPs (twice
that in float64); our iteration reads 2 bytes, one of two products with a kernel 8 (16), and a
log-domain update makes about six passes over 4 (8). OTT's threads are XLA's own and are not pinned.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import peers
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels import reference
from kernels.alternating import Potentials
from kernels.bures import bures_squared, class_gaussians
from kernels.certificate import certify
from kernels.ground_cost import STRIP_ROWS, GroundCost
from kernels.sinkhorn import Divergence, debiased, transport, unregularised
from kernels.stored_cost import COARSE, StoredCost, store
from kernels.sweep import sinkhorn_sweep

KERNELS = ("sweep", "sinkhorn", "certificate", "alternating", "ground_cost", "stored_cost")
EPS = 0.05  # of the mean cost
ERROR = 1e-4  # of the entropic value
_DIMENSION = 768
_TARGETED = 10_000  # samples at which the targets hold


def gate(device: torch.device) -> None:
    """The sweep against float64, on the path that is timed; values against a log-domain loop."""
    generator = torch.Generator().manual_seed(0)
    shape = (2048, 2100)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(torch.int16)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    bounds = torch.tensor([0, 300, 812, 2048])
    right = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double(), bounds)
    inputs = q.to(device), f.to(device), g.to(device), kappa.to(device), bounds
    found = sinkhorn_sweep(*inputs)
    for mine, truth in zip(found, right, strict=True):
        torch.testing.assert_close(mine.cpu().double(), truth, rtol=2e-5, atol=2e-5)
    cost = _Problem(2100, 10, device, d=16).cost()
    copied = store(cost, copy=COARSE)
    for rows, part in copied.parts():
        made = copied.offset[rows, None] + copied.step[rows, None] * part
        off = (made - cost.rows(rows.start, rows.stop)).abs().amax(1)
        assert (off <= 0.6 * copied.step[rows]).all(), "the copy is not the cost"
    cost = _Problem(150, 10, device, d=16).cost()
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
        problem = _Problem(*((500, 10) if scale.quick else (50_000, 1000)), device)
        yield _gemv(problem, torch.bfloat16)
        yield from _solves(problem, log_domain=False)
        yield from _debiased(problem)
        return
    sizes = (150,) if scale.quick else (2000, 5000, 10_000) if scale.full else (2000, 5000)
    yield _gemv(_Problem(sizes[-1], 100, device), torch.float32)
    for n in sizes:
        problem = _Problem(n, 10 if scale.quick else 100, device)
        yield from _solves(problem, log_domain=n <= 2000 or scale.full)
    for n in (100,) if scale.quick else (1000, 10_000) if scale.full else (1000,):
        yield from _bracket(_Problem(n, 10 if scale.quick else 100, device))


class _Problem:
    """Two samples of n from mixtures whose spectrum decays as 1 / k, classes drawn at random.

    The second has its classes moved, as another style of the same concepts would. The table holds
    distances of means: what is in it costs a solver nothing.
    """

    def __init__(self, n: int, classes: int, device: torch.device, *, d: int = _DIMENSION) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, d + 1) ** -0.5
        centres = torch.randn(classes, d, generator=generator) * scale
        self.n = n
        self.features, self.labels = [], []
        for k in range(2):
            labels = torch.randint(classes, (n,), generator=generator)
            labels[:classes] = torch.arange(classes)
            moved = centres + 0.5 * k * torch.randn(classes, d, generator=generator) * scale
            noise = torch.randn(n, d, generator=generator)
            self.features.append((moved[labels] + 0.7 * noise * scale).to(device))
            self.labels.append(labels.to(device))
        a, b = (
            class_gaussians(*pair, classes) for pair in zip(self.features, self.labels, strict=True)
        )
        pairs = ((a, b), (a, None), (b, None))
        self.table, *self.own_tables = (bures_squared(*pair, means_only=True) for pair in pairs)
        self.eps = EPS * self.cost().mean

    @property
    def product(self) -> Work:
        """The float32 product of the features."""
        return Work(flops=2 * self.n**2 * self.features[0].shape[1])

    def cost(self) -> GroundCost:
        x, y = self.features
        labels_x, labels_y = self.labels
        return GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=self.table)

    def own_cost(self, k: int) -> GroundCost:
        x, labels = self.features[k], self.labels[k]
        return GroundCost(x, x, labels_x=labels, labels_y=labels, table=self.own_tables[k])

    def dense(self) -> np.ndarray:
        """The cost in float32, as fast as we can build it, for solvers that want a matrix."""
        return self.cost().rows(0, self.n, dtype=torch.float32).numpy()

    def dense_double(self) -> np.ndarray:
        """The cost as POT's users build it. Rows and columns are sorted by class, as `dense`."""
        import ot

        cost = self.cost()
        clouds = zip(self.features, (cost.x, cost.y), strict=True)
        x, y = (features[cloud.order].numpy() for features, cloud in clouds)
        labels_x, labels_y = cost.x.labels.numpy(), cost.y.labels.numpy()
        return ot.dist(x.astype(np.float64), y) + self.table.numpy()[labels_x][:, labels_y]


@dataclass(frozen=True)
class _Solver:
    """solve(k): the column potential [m], sorted by class, after k iterations from nothing.

    build: what comes before them; each: one iteration. target: of the time ratio.
    """

    name: str
    solve: Callable[[int], Tensor]
    build: Work
    each: Work
    target: float | None = None


def _solves(problem: _Problem, *, log_domain: bool) -> Iterator[Contest]:
    name = f"{problem.n}, d = {_DIMENSION}"
    certified = transport(problem.cost(), eps=problem.eps, tolerance=ERROR)
    assert certified.converged, f"not certified: gap {certified.gap:.2g}"
    stored = store(problem.cost())

    def error(g: Tensor) -> float:
        dual = certify(stored, g, problem.eps, torch.ones_like(g)).dual
        return abs(dual / certified.value - 1)

    def entrant(solver: _Solver, steps: Iterable[int]) -> Entrant:
        for k in steps:
            if (off := error(solver.solve(k))) <= ERROR:
                break
        said = f"{solver.name}, {k}" if off <= ERROR else f"{solver.name}, {k}: off {off:.0e}"
        work = solver.build + Work(solver.each.bytes * k, solver.each.flops * k)
        target = solver.target if problem.n >= _TARGETED else None
        return Entrant(said, partial(solver.solve, k), work, target)

    k = _alternations(stored, problem.eps, certified.value)
    alternating = range(k, k + 3)  # the order of the two updates differs
    k = next(k for k in range(2, 200) if error(_iterate(stored, problem.eps, k)) <= ERROR)
    subject = entrant(_ours(problem), (k,))
    cuda = stored.offset.is_cuda
    stored_kernel, stable = ([_two_products(problem)], []) if cuda else _pot(problem)

    def entered(solvers: list[_Solver], steps: Iterable[int]) -> tuple[Entrant, ...]:
        tried = (peers.tried(solver.name, partial(entrant, solver, steps)) for solver in solvers)
        return tuple(chain.from_iterable(tried))

    plain = entered(stored_kernel, alternating)
    others = plain
    if log_domain:
        # At sizes where they take minutes only those in float32, which are faster.
        solvers = [*stable[-1 if problem.n >= _TARGETED else 0 :], *_ott(problem)]
        others += entered(solvers, alternating)
        annealed = (10, 20, 40, 70, 100)
        others += entered(_geomloss(problem), annealed)
    for peer in others:
        yield Contest(f"solve {name}", subject, (peer,), rounds=2, processor_time=True)
    work = problem.product + Work(bytes=2 * problem.n**2 * (certified.iterations + 2))
    whole = Entrant(
        "transport", lambda: transport(problem.cost(), eps=problem.eps, tolerance=ERROR), work
    )
    for peer in plain:
        yield Contest(f"certified {name}", whole, (peer,), rounds=2, processor_time=True)


def _two_products(problem: _Problem) -> _Solver:
    """Textbook Sinkhorn on a GPU: the kernel in bf16, two products an iteration."""

    def solve(k: int) -> Tensor:
        cost = problem.cost()
        kernel = cost.x.x.new_empty(cost.shape, dtype=torch.bfloat16)
        for rows, part in cost.strips(STRIP_ROWS, dtype=torch.float32):
            kernel[rows] = part.div_(-problem.eps).exp_()
        v = kernel.new_ones(problem.n)
        for _ in range(k):
            u = 1 / (kernel @ v)
            v = 1 / (u @ kernel)
        return problem.eps * v.double().log()

    cells = problem.n**2
    build = Work(2 * cells, problem.product.flops)
    return _Solver("two GEMVs, bf16", solve, build, Work(4 * cells))


def _debiased(problem: _Problem) -> Iterator[Contest]:
    """From features to the certified, debiased value, against flash-sinkhorn at the same eps."""
    module = peers.optional("flash_sinkhorn")
    if module is None:
        return

    def ours() -> Divergence:
        solve = partial(transport, eps=problem.eps, tolerance=ERROR / 3)
        own = [solve(problem.own_cost(k), symmetric=True) for k in range(2)]
        across = solve(problem.cost(), start=own[1].g)
        return debiased(across, *own, tolerance=ERROR)

    # Its label distances are one square matrix: classes of the second set come after the first's.
    (first, second), classes = problem.own_tables, len(problem.table)
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

    def theirs() -> Tensor:
        return loss(x, y, label_x=labels_x, label_y=labels_y + classes)

    found = ours()
    assert found.converged, f"not certified: gap {found.gap:.2g}"
    cells, iterations = problem.n**2, 40
    subject = Work(bytes=3 * 2 * cells * 10, flops=3 * problem.product.flops)
    # It computes the product again in every iteration of its schedule.
    work = Work(flops=3 * iterations * problem.product.flops)

    def peer() -> Entrant:
        off = abs(float(theirs()) / found.value - 1)
        return Entrant(f"flash-sinkhorn: off {off:.0e}", theirs, work)

    for each in peers.tried("flash-sinkhorn", peer):
        yield Contest(
            f"debiased, {problem.n}", Entrant("debiased", ours, subject), (each,), rounds=3
        )


def _alternations(stored: StoredCost, eps: float, value: float) -> int:
    """Iterations that bring textbook Sinkhorn within the error, counted on our copy."""
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=10**9)
    n, m = stored.shape
    for k in range(1, 1000):
        log_s, blocks = potentials._sweep(potentials.f, eps)
        potentials.f = potentials.f - eps * log_s
        if float(potentials.f.mean() + potentials.g.mean()) >= (1 - ERROR) * value:
            return k - 1
        potentials.g = potentials.g - eps * (blocks.sum(0, dtype=torch.float64) * (m / n)).log()
    raise AssertionError("textbook Sinkhorn does not get there in 1000 iterations")


def _iterate(stored: StoredCost, eps: float, k: int) -> Tensor:
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=k)
    potentials.solve(eps, 1e-9)
    return potentials.g


def _ours(problem: _Problem) -> _Solver:
    def solve(k: int) -> Tensor:
        return _iterate(store(problem.cost()), problem.eps, k)

    cells = problem.n**2
    return _Solver("ours", solve, problem.product + Work(2 * cells), Work(2 * cells))


def _pot(problem: _Problem) -> tuple[list[_Solver], list[_Solver]]:
    """Those with a stored kernel, and those that are safe at small eps."""
    if (ot := peers.optional("ot")) is None:
        return [], []
    cells = problem.n**2
    marginal = np.full(problem.n, 1 / problem.n)
    options = {"stopThr": 0.0, "log": True, "warn": False}

    def solver(
        name: str, method: str, target: float | None, *, single: bool = False, passes: int = 2
    ) -> _Solver:
        call = getattr(ot.bregman, method)

        def solve(k: int) -> Tensor:
            cost = problem.dense() if single else problem.dense_double()
            weights = marginal.astype(cost.dtype)
            found = call(weights, weights, cost, problem.eps, numItermax=k, **options)[1]
            for key, read in (("log_v", np.asarray), ("logv", np.asarray), ("v", np.log)):
                if key in found:
                    return torch.from_numpy(problem.eps * read(found[key]).astype(float).ravel())
            raise KeyError(f"{method} returned {list(found)}")

        width = 4 if single else 8
        build = Work(6 * width * cells, problem.product.flops * (1 if single else 2))
        return _Solver(name, solve, build, Work(passes * width * cells), target)

    plain = [
        solver("POT", "sinkhorn_knopp", 1 / 2.5),
        solver("POT fp32", "sinkhorn_knopp", None, single=True),
    ]
    return plain, [
        solver("POT stabilised", "sinkhorn_stabilized", None),
        solver("POT log", "sinkhorn_log", 1 / 5, passes=12),
        solver("POT log fp32", "sinkhorn_log", 1 / 5, single=True, passes=12),
    ]


def _geomloss(problem: _Problem) -> list[_Solver]:
    module = peers.optional("geomloss.ot")
    if module is None:
        return []

    def solve(k: int) -> Tensor:
        cost = torch.from_numpy(problem.dense())
        return module.solve(cost, reg=problem.eps, max_iter=k).potential_b.double()

    build = problem.product + Work(8 * problem.n**2)
    return [_Solver("geomloss", solve, build, Work(48 * problem.n**2), 1 / 5)]


def _ott(problem: _Problem) -> list[_Solver]:
    if peers.optional("ott") is None:
        return []
    jax = importlib.import_module("jax")
    geometry = importlib.import_module("ott.geometry.geometry")
    linear_problem = importlib.import_module("ott.problems.linear.linear_problem")
    sinkhorn = importlib.import_module("ott.solvers.linear.sinkhorn")
    compiled: dict[int, Any] = {}

    def run(k: int) -> Any:
        limits = dict.fromkeys(("inner_iterations", "min_iterations", "max_iterations"), k)
        solver = sinkhorn.Sinkhorn(lse_mode=True, threshold=0.0, **limits)

        def potential(cost: Any) -> Any:
            given = geometry.Geometry(cost_matrix=cost, epsilon=problem.eps)
            return solver(linear_problem.LinearProblem(given)).g

        return jax.jit(potential)

    def solve(k: int) -> Tensor:
        if k not in compiled:
            compiled[k] = run(k)
        return torch.from_numpy(np.array(compiled[k](problem.dense()), dtype=np.float64))

    build = problem.product + Work(8 * problem.n**2)
    return [_Solver("OTT", solve, build, Work(48 * problem.n**2), 1 / 5)]


def _bracket(problem: _Problem) -> Iterator[Contest]:
    ot = peers.optional("ot")
    if ot is None:
        return
    marginal = np.full(problem.n, 1 / problem.n)

    def exact() -> object:
        return ot.emd(marginal, marginal, problem.dense_double(), numItermax=10**7)

    found = unregularised(problem.cost(), tolerance=1e-3)
    name = f"bracket 1e-3, {problem.n}"
    if not found.converged:
        name += f": MISSED, {found.gap:.1e}"
    double = Work(flops=2 * problem.product.flops)
    read = Work(bytes=4 * problem.n**2 * found.iterations)
    subject = Entrant("unregularised", lambda: unregularised(problem.cost()), double + read)
    # Network simplex has no prediction but its cost: it takes far longer than that.
    peer = Entrant("POT emd, exact", exact, double + Work(bytes=48 * problem.n**2))
    yield Contest(name, subject, (peer,), rounds=3, processor_time=True)


def _gemv(problem: _Problem, dtype: torch.dtype) -> Contest:
    """One iteration: our sweep against two products with a stored kernel."""
    cost = problem.cost()
    stored = store(cost)
    assert stored.q is not None, "the copy does not fit"
    device = stored.q.device
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=10**9)
    potentials.solve(problem.eps, 0.1)
    own = ((potentials.f - stored.offset) / problem.eps).float()
    other = (potentials.g / problem.eps - math.log(problem.n)).float()
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
            lambda: sinkhorn_sweep(q, own, other, kappa, cost.x.bounds),
            Work(2 * cells),
        ),
        (Entrant(f"two GEMVs, {label}", products, Work(2 * width * cells)),),
        processor_time=True,
    )
