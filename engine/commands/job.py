"""A job of a campaign as a program, which the workflow starts."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from engine.grid import campaign, workflow
from engine.machine import entry, quiet


def main() -> int:
    """Exit code of the job that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("prepare", "column", "report"))
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--column", default=None)
    arguments = parser.parse_args()
    return entry.guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    import torch

    from engine.grid import jobs
    from engine.machine import gpus, ranks
    from engine.report import tables

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    plan = campaign.read(arguments.plan)
    workflow.end_with_campaign(plan)
    if arguments.stage == "report":
        try:
            tables.finish(plan, ranks.pick_device("auto"))
        except (ValueError, OSError):  # the store lacks what the columns made
            workflow.forget_columns(plan)
            raise
        return
    if arguments.stage == "prepare":
        jobs.prepare(plan, ranks.start())
    else:
        count = torch.cuda.device_count()
        gpu = gpus.claim(plan.path.parent, count) if count > 1 else 0
        jobs.column(plan, plan.column(arguments.column), ranks.start(gpu=gpu))
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
