"""Solvers of entropic transport under one interface: ours, POT, geomloss, OTT, two products."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import peers
from bench.roofline import Work
from bench.transport_problem import Problem
from kernels.transport.alternating import Potentials
from kernels.transport.store import StoredCost, store


@dataclass(frozen=True)
class Solver:
    """solve(k): the column potential [m], sorted by class, after k iterations from nothing.

    build: what comes before them; each: one iteration. target: of the time ratio.
    """

    name: str
    solve: Callable[[int], Tensor]
    build: Work
    each: Work
    target: float | None = None


def iterate(stored: StoredCost, eps: float, k: int) -> Tensor:
    potentials = Potentials(stored, symmetric=False, start=None, max_iterations=k)
    potentials.solve(eps, 1e-9)
    return potentials.g


def read_by_a_sweep(problem: Problem) -> Work:
    """16 bits a cost, which a GPU reads for the rows and again for the columns."""
    return Work((4 if problem.features[0].is_cuda else 2) * problem.n**2)


def ours(problem: Problem) -> Solver:
    def solve(k: int) -> Tensor:
        return iterate(store(problem.cost()), problem.eps, k)

    build = problem.product + Work(2 * problem.n**2)
    return Solver("ours", solve, build, read_by_a_sweep(problem))


def two_products(problem: Problem) -> Solver:
    """Textbook Sinkhorn on a GPU: the kernel in bf16, two products an iteration."""

    def solve(k: int) -> Tensor:
        cost = problem.cost()
        kernel = cost.x.x.new_empty(cost.shape, dtype=torch.bfloat16)
        for rows, part in cost.strips(512):
            kernel[rows] = part.div_(-problem.eps).exp_()
        v = kernel.new_ones(problem.n)
        for _ in range(k):
            u = 1 / (kernel @ v)
            v = 1 / (u @ kernel)
        return problem.eps * v.double().log()

    cells = problem.n**2
    build = Work(2 * cells, problem.product.flops)
    return Solver("two GEMVs, bf16", solve, build, Work(4 * cells))


def pot(problem: Problem) -> tuple[list[Solver], list[Solver]]:
    """Those with a stored kernel, and those that are safe at small eps."""
    if (ot := peers.optional("ot")) is None:
        return [], []
    cells = problem.n**2
    marginal = np.full(problem.n, 1 / problem.n)
    options = {"stopThr": 0.0, "log": True, "warn": False}

    def solver(
        name: str, method: str, target: float | None, *, single: bool = False, passes: int = 2
    ) -> Solver:
        call = getattr(ot.bregman, method)

        def solve(k: int) -> Tensor:
            cost = problem.dense() if single else problem.dense_double()
            weights = marginal.astype(cost.dtype)
            log = call(weights, weights, cost, problem.eps, numItermax=k, **options)[1]
            for key, read in (("log_v", np.asarray), ("logv", np.asarray), ("v", np.log)):
                if key in log:
                    return torch.from_numpy(problem.eps * read(log[key]).astype(float).ravel())
            raise KeyError(f"{method} returned {list(log)}")

        width = 4 if single else 8
        build = Work(6 * width * cells, problem.product.flops * (1 if single else 2))
        return Solver(name, solve, build, Work(passes * width * cells), target)

    plain = [
        solver("POT", "sinkhorn_knopp", 1 / 2.5),
        solver("POT fp32", "sinkhorn_knopp", None, single=True),
    ]
    return plain, [
        solver("POT stabilised", "sinkhorn_stabilized", None),
        solver("POT log", "sinkhorn_log", 1 / 5, passes=12),
        solver("POT log fp32", "sinkhorn_log", 1 / 5, single=True, passes=12),
    ]


def geomloss(problem: Problem) -> list[Solver]:
    module = peers.optional("geomloss.ot")
    if module is None:
        return []

    def solve(k: int) -> Tensor:
        cost = torch.from_numpy(problem.dense())
        return module.solve(cost, reg=problem.eps, max_iter=k).potential_b.double()

    build = problem.product + Work(8 * problem.n**2)
    return [Solver("geomloss", solve, build, Work(48 * problem.n**2), 1 / 5)]


def ott(problem: Problem) -> list[Solver]:
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
            problem_geometry = geometry.Geometry(cost_matrix=cost, epsilon=problem.eps)
            return solver(linear_problem.LinearProblem(problem_geometry)).g

        return jax.jit(potential)

    def solve(k: int) -> Tensor:
        if k not in compiled:
            compiled[k] = run(k)
        return torch.from_numpy(np.array(compiled[k](problem.dense()), dtype=np.float64))

    build = problem.product + Work(8 * problem.n**2)
    return [Solver("OTT", solve, build, Work(48 * problem.n**2), 1 / 5)]
