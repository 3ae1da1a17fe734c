"""`rib plan`: what a campaign would cost, before anything runs."""

from __future__ import annotations

import argparse

from engine import campaign, quiet


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plan", help="images, GPU-hours, disk and jobs of a campaign")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak; default: 0.4")
    parser.add_argument(
        "--tflops", type=float, default=312.0, help="peak of one GPU; default: 312, an A100 in bf16"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.mfu <= 1 or arguments.tflops <= 0:
        raise ValueError("--mfu must be above 0 and at most 1, --tflops above 0")
    quiet.libraries()
    from engine import estimate

    plan = campaign.plan(arguments.name, arguments.overrides, cores=1)
    print(estimate.text(estimate.of(plan), estimate.Device(arguments.tflops, arguments.mfu)))
