"""`rib plan`: what a campaign would cost, before anything runs."""

from __future__ import annotations

import argparse

from engine import recipe
from engine.grid import campaign
from engine.machine import quiet


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plan", help="images, GPU-hours, disk and jobs of a campaign")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--mfu", type=float, help="share of the peak; default: 0.4")
    parser.add_argument("--tflops", type=float, help="peak of one GPU; default: an A100's in bf16")
    parser.add_argument("--fp32-tflops", type=float, help="the same in fp32; default: an A100's")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    from engine.cost import estimate

    given = {name: getattr(arguments, name) for name in ("tflops", "fp32_tflops", "mfu")}
    device = estimate.Device(**{name: value for name, value in given.items() if value is not None})
    if not 0 < device.mfu <= 1 or min(device.tflops, device.fp32_tflops) <= 0:
        raise ValueError("--mfu must be above 0 and at most 1, --tflops and --fp32-tflops above 0")
    found = []
    for words in recipe.each_model(arguments.name, arguments.overrides):
        found.append(estimate.of(campaign.plan(arguments.name, words, cores=1)))
        print(estimate.text(found[-1], device))
    if len(found) > 1:
        print(estimate.total(found, device))
