"""What `bench/README.md` predicts for GPUs, from `engine.cost.rates`: it times nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from engine.campaigns import simulation
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import Shape
from engine.cost import estimate, rates, work
from engine.recipe.campaigns import each_model
from engine.recipe.overrides import parsed

BATCH, GPUS = 64, 8


def rows() -> Iterator[dict[str, Any]]:
    """A compiled training step of ViT-B/16 in bf16 on an H100, and hours of the released grid."""
    recipe = make_plan("imagenet_rib", parsed([f"train.batch_size={BATCH}"])).recipe
    step = work.network(recipe, 1000).trained("step", BATCH, work.FULL_PASSES, recipe)
    chip, device = rates.CHIPS["H100"], estimate.gpu("H100")
    seconds = 3600 * device.hours([step])
    mfu = step.operations / seconds / (1e12 * chip.bf16)
    yield {"what": f"step of {BATCH}, H100", "ms": 1e3 * seconds, "mfu": mfu}
    for precision in ("fp32", "bf16"):
        words = [f"train.precision={precision}", f"evaluate.precision={precision}"]
        plan = make_plan("imagenet_rib_released", parsed(words))
        grid, device = simulation.planned(plan), estimate.gpu("A100")
        shape = simulation.best_shape([grid], device, GPUS)
        hours = simulation.simulated([grid], device, GPUS, shape).hours
        yield {"what": f"imagenet_rib_released, {precision}, {GPUS} A100s", "hours": hours}
    yield from workflows()


def workflows() -> Iterator[dict[str, Any]]:
    """Minutes of `imagenet_rib`, of one model and of all, on numbers of GPUs: with a job per column
    on one GPU, on the best number of GPUs, in the shape that `rib campaign` takes (its GPUs per job
    and jobs per column), and in the one that it takes under Slurm."""
    of_models = each_model("imagenet_rib", parsed(["model=all"]))
    grids = [simulation.planned(make_plan("imagenet_rib", words)) for words in of_models]
    first = simulation.planned(make_plan("imagenet_rib", []))
    for models in ([first], grids):
        for name, gpus in itertools.product(("A100", "H100"), (1, 8, 64)):
            device = estimate.gpu(name)
            best = simulation.best_shape(models, device, gpus)
            shapes = {
                "plain": Shape(),
                "wide": simulation.best_shape(models, device, gpus, jobs_per_column=1),
                "best": best,
                "queued": simulation.queued_shape(models, device, 1)[0],
            }
            minutes = {
                shape: 60 * simulation.simulated(models, device, gpus, each).hours
                for shape, each in shapes.items()
            }
            what = f"models: {len(models)}, GPUs: {gpus} x {name}"
            yield {"what": what, **minutes, "gpus": best.gpus_per_job, "jobs": best.jobs_per_column}
