"""A job of a campaign as a program, which the workflow starts."""

from __future__ import annotations

from engine.machine import parent

if __name__ == "__main__":  # the imports below take seconds, within which a campaign may end
    parent.follow_campaign()

import argparse
import logging
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engine.grid import attempts, campaign, job_graph, markers
from engine.grid.attempts import Attempt
from engine.grid.campaign import Plan
from engine.grid.job_graph import COLUMN, EVALUATE, PREPARE, REPORT, TRAIN
from engine.machine import entry, quiet
from engine.store.shares import share_of

STAGES = (PREPARE, COLUMN, TRAIN, EVALUATE, REPORT)

if TYPE_CHECKING:
    import torch


def main() -> int:
    """Exit code of the job that the command line names."""
    parent.follow_launcher()
    arguments = parser().parse_args()
    # A job that ends with code 2 is not tried again.
    return entry.guarded(lambda: run(arguments), passing_code=os.EX_IOERR)


def parser() -> argparse.ArgumentParser:
    """The words that say what a job does and to which plan."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--column", help="of `column` and `train`")
    parser.add_argument("--rows", nargs="*", default=[], help="of `train`: default all")
    parser.add_argument("--set", help="of `evaluate`: the models of all columns on this set")
    parser.add_argument("--share", type=share_of, help="of `evaluate`: K/N, a share of the slices")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a column")
    return parser


def run(arguments: argparse.Namespace) -> None:
    started = time.time()
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.info("importing torch")  # for seconds
    import torch

    from engine.machine import precision, ranks
    from engine.machine.device_name import device_name

    if arguments.ranks > 1 and "RANK" not in os.environ:
        _become_ranks(arguments.ranks, arguments.device)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    plan = campaign.read(arguments.plan)
    if arguments.stage == REPORT:
        precision.no_tf32()
        chosen = arguments.device
        device = ranks.pick_device("auto") if chosen == "auto" else torch.device(chosen)
        report(plan, device)
        return
    device = ranks.start(arguments.device, gpu=_free_gpu(arguments.device))
    of = arguments.column or arguments.set or ""
    name = job_graph.name_of(arguments.stage, of, arguments.rows, arguments.share)
    worker = device_name(device)
    attempt = Attempt(name, arguments.stage, started, None, worker, ranks.world())
    place = arguments.plan.parent
    with attempts.recorded(place, attempt) if ranks.rank() == 0 else nullcontext():
        _compute(plan, arguments, device)
    ranks.stop()


def _compute(plan: Plan, arguments: argparse.Namespace, device: torch.device) -> None:
    from engine.grid import jobs

    if arguments.stage == PREPARE:
        jobs.prepare(plan, device)
    elif arguments.stage == EVALUATE:
        jobs.evaluate(plan, arguments.set, device, arguments.share)
    elif arguments.stage == TRAIN:
        jobs.train(plan, plan.column(arguments.column), device, arguments.rows)
    else:
        jobs.column(plan, plan.column(arguments.column), device)


def report(plan: Plan, device: torch.device) -> None:
    """The last job of a campaign. Where the store lacks something, the next run looks for it."""
    from engine.grid import jobs
    from engine.report import finish

    try:
        finish.finish(plan, device)
        jobs.remove_snapshots(plan, device)
    except (ValueError, OSError):
        markers.forget(plan)
        raise


def _free_gpu(device: str) -> int:
    """Number of the GPU with the fewest jobs on this machine, now claimed; 0 without a choice."""
    from engine.machine import gpus, ranks

    if "RANK" in os.environ or ranks.pick_device(device).type == "cpu":
        return 0
    names = gpus.names()
    return gpus.claim(names)[0] if len(names) > 1 else 0


def _become_ranks(number: int, device: str) -> NoReturn:
    """Become the launcher of so many processes with these words; each has a claimed GPU."""
    from engine.machine import gpus, ranks

    if ranks.pick_device(device).type == "cuda":
        names = gpus.names()
        if number > len(names):
            raise ValueError(f"--ranks {number}, but torch sees {len(names)} GPUs")
        claimed = [names[place] for place in gpus.claim(names, number)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    launcher = ["-P", "-m", "engine.machine.launcher", str(number), "engine.commands.job"]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
