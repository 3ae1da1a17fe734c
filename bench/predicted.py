"""What `bench/README.md` predicts for GPUs, from `engine.cost.rates`: it times nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.campaigns.make_plan import make_plan
from engine.cost import estimate, rates, work
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
        grid, device = estimate.of(plan.recipes, len(plan.rows)), estimate.gpu("A100")
        each = estimate.gpus_per_job([grid], device, GPUS)
        hours = estimate.simulated([grid], device, GPUS, each).hours
        yield {"what": f"imagenet_rib_released, {precision}, {GPUS} A100s", "hours": hours}
