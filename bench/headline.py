"""A step of FT, LwF and EWC and an evaluated batch in the steady state, with torch and timm alone.

On a GPU ViT-B/16 at 224 px, its products in bf16, in batches of 64 and 256: as the model is;
compiled as the engine does, for batches of any size; compiled for one size; and compiled with the
residual stream in bf16 (`train.precision=bf16_residual`). A compiled row fails if any of it would
run eager, and `graphs` counts its form's graphs so far. The kernels of a compiled FT step are
listed, with the GPU's idle share. On a CPU ViT-S in batches of 8. Images wait on the device; LwF's
teacher logits and EWC's Fisher are at hand, as they are in a campaign.
mfu counts the model's passes, whatever else a method does, over the data sheet's rate, or that of
the best product measured here. peak_mb, on a GPU: the most that tensors held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import vit
from bench.contest import Contest, Entrant, Scale
from engine.cost.flops import peak
from engine.machine.layers import pass_on_bf16
from kernels.distill import distill_loss
from kernels.ewc import EwcParameters

LAM, LR = 0.5, 1e-5
# How a model runs: whether its graph takes batches of any size; None: it is not compiled. The last
# form changes the model, and comes after the others.
RESIDUAL = ", compiled, bf16 residual"
FORMS: dict[str, bool | None] = {
    "": None, ", compiled": True, ", compiled for one size": False, RESIDUAL: True
}  # fmt: skip


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    on_gpu = device.type == "cuda"
    batches = (2, 4) if scale.quick else (64, 256) if on_gpu else (8,)
    model = vit.build(device, scale.quick, "ViT-B" if on_gpu else "ViT-S", max(batches))
    for form in FORMS if on_gpu else ("",):
        # Each batch of a form for one size is two more graphs to compile.
        of_this = batches[-1:] if FORMS[form] is False else batches
        for contest in of_form(model, form, of_this):
            yield contest
            if FORMS[form]:
                print(kernels_of(contest.ours.run, device))


def of_form(
    model: vit.FlatViT, form: str, batches: Sequence[int], backend: str | Callable = "inductor"
) -> Iterator[Contest]:
    """The contests of one of `FORMS`, one for each batch size.

    A compiled one raises torch's FailOnRecompileLimitHit, or Unsupported for a graph break, where a
    pass would run eager."""
    dynamic, net = FORMS[form], model.net
    if form == RESIDUAL:
        pass_on_bf16(net)
    if dynamic is not None:
        # All forms share the code of one forward pass, and Dynamo limits the graphs of a code.
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        net = torch.compile(
            net, dynamic=None if dynamic else False, fullgraph=True, backend=backend
        )
    for batch in batches:
        part = replace(model.at_most(batch), net=net)
        if dynamic:
            torch._dynamo.maybe_mark_dynamic(part.images, 0)  # as engine.models.execution
        fine_tuning, *others = _entrants(part)
        if dynamic is not None:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            assert graphs, f"{model.kind} x {batch}{form} did not compile"
            fine_tuning = replace(fine_tuning, facts={"graphs": graphs, **fine_tuning.facts})
        name = f"{model.kind} x {batch}{form}"
        yield Contest(name, fine_tuning, tuple(others), processor_time=True)


def _entrants(model: vit.FlatViT) -> list[Entrant]:
    """AdamW on flat fp32 buffers, the model itself in bf16 on a GPU."""
    theta, device = model.theta, model.theta.device
    anchor, fisher, right = theta.clone(), torch.rand_like(theta), torch.zeros((), device=device)
    moments = {name: [torch.zeros_like(theta)] for name in ("exp_avg", "exp_avg_sq")}
    penalised = EwcParameters([theta], moments, [anchor], [fisher])
    with torch.no_grad(), vit.autocast(device):
        teacher = model.net(model.images)
    parameter = torch.nn.Parameter(theta)  # the same memory
    parameter.grad = model.grad
    adamw = torch.optim.AdamW([parameter], lr=LR, fused=True)

    def backward(loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> None:
        model.grad.zero_()
        with vit.autocast(device):
            value = loss(model.net(model.images), model.labels)
        value.backward()

    def fine_tuning() -> None:
        backward()
        adamw.step()

    def lwf() -> None:
        backward(lambda logits, labels: distill_loss(logits, teacher, labels).mean())
        adamw.step()

    def ewc() -> None:
        backward()
        penalised.adamw_([model.grad], steps=[3], lr=LR, weight_decay=1e-2, lam=LAM)

    @torch.no_grad()  # as the teacher, so both take the same graph
    def evaluation() -> None:
        """Adds up the right answers, which stay on the device."""
        with vit.autocast(device):
            answers = model.net(model.images).argmax(1)
        right.add_((answers == model.labels).sum())

    def entrant(name: str, run: Callable[[], None], held: int, flops: float) -> Entrant:
        least_ms = 1e3 * model.batch * flops / peak(device, "bf16" if theta.is_cuda else "fp32")
        beside = held * theta.nbytes + model.images.nbytes
        return Entrant(name, run, model.batch, least_ms=least_ms, facts=_peak(run, beside, device))

    # For a parameter are held, between steps: the weight; in training its gradient and two moments;
    # for EWC anchor and Fisher.
    return [
        entrant("FT", fine_tuning, 4, model.flops),
        entrant("LwF", lwf, 4, model.flops),
        entrant("EWC", ewc, 6, model.flops),
        entrant("evaluation", evaluation, 1, model.forward_flops),
    ]


def kernels_of(run: Callable[[], object], device: torch.device, runs: int = 5) -> str:
    """A table of the ten kernels, on a CPU operators, that take a run most of its time, and the
    share of it in which the device did nothing."""
    on_gpu = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    run()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[kind]) as profile:
        for _ in range(runs):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    took_us = 1e6 * (time.perf_counter() - begin)
    events = profile.key_averages()
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    busy_us = sum(getattr(event, column) for event in events)
    table = events.table(sort_by=column, row_limit=10)
    return f"{table}\nidle: {max(0.0, 1 - busy_us / took_us):.0%} of {took_us / runs / 1e3:.3g} ms"


def _peak(run: Callable[[], None], held: int, device: torch.device) -> dict[str, float]:
    """On a GPU the most bytes that tensors hold: `held`, and what a run adds to what is there."""
    if device.type != "cuda":
        return {}
    run()  # compiles
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return {"peak_mb": (held + torch.cuda.max_memory_allocated(device) - before) / 1e6}
