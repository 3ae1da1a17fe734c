"""The program that the workflow starts for each job of a campaign."""

from __future__ import annotations

from engine.machine import parent

if __name__ == "__main__":  # the campaign may end during the imports below, which take seconds
    parent.follow_campaign()

import argparse
import fcntl
import itertools
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from engine.campaigns import job_states
from engine.campaigns.events import Placed, append_event, recorded
from engine.campaigns.plan import (
    COLUMN,
    DISTANCES,
    EVALUATE,
    PREPARE,
    REPORT,
    TRAIN,
    Plan,
    check_modules,
    read_plan,
    stage_of,
)
from engine.campaigns.plan_folder import PlanFolder
from engine.machine import entry, preemption
from engine.machine.files import runtime_folder
from engine.machine.follower import following
from engine.recipe.finder import allow_users_files
from engine.store.artifacts import Store
from engine.store.use import in_use

if TYPE_CHECKING:
    import torch

_held: list[BinaryIO] = []  # files of claimed GPUs


def main() -> int:
    """Run the job on the command line. Returns its exit code."""
    parent.follow_launcher()
    arguments = parser().parse_args()
    # A job that exits with code 2 is not retried.
    return entry.guarded(lambda: run(arguments), transient_code=os.EX_IOERR)


def parser() -> argparse.ArgumentParser:
    """The parser of a job's command line."""
    words = argparse.ArgumentParser()
    words.add_argument("job", help="a name in the plan, such as prepare or column-NAME")
    words.add_argument("--plan", type=Path, required=True)
    words.add_argument("--ranks", type=int, default=1, help="processes of prepare or a column")
    words.add_argument("--cells", type=int, nargs="*", help="numbers of the cells to make, alone")
    words.add_argument("--found", action="store_true", help="cells of users' methods are made")
    return words


def run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    job, place = arguments.job, PlanFolder(arguments.plan.parent)
    is_part, code = arguments.cells is not None or arguments.found, 0
    plan = read_plan(place)
    in_processes = not is_part and _runs_users(plan, job)
    if job != REPORT and not in_processes and "RANK" not in os.environ:
        _take_gpus(1 if job == DISTANCES else arguments.ranks, plan.device)
    with in_use(Store(place.store)), recorded(place, job, is_part=is_part):
        if in_processes:
            code = _in_processes(plan, job)
        else:
            _compute(arguments, plan)
    if code:
        sys.exit(code)
    if os.environ.get("RANK", "0") == "0" and not is_part:
        job_states.set_done(place, job)


def _runs_users(plan: Plan, job: str) -> bool:
    """Whether a job makes cells of users' methods."""
    rows = list(plan.rows.values())
    if stage_of(job) == TRAIN:
        rows = [rows[number % len(rows)] for number in plan.cells_of(job)]
    return stage_of(job) in (TRAIN, COLUMN) and any(row.runs_users for row in rows)


def _in_processes(plan: Plan, job: str) -> int:
    """Make the cell of each user's method in a process of its own, after the engine's cells; a
    column's job evaluates them all in a last one. What a user's file changes in torch then changes
    no other row.

    Returns the exit code of the first process that fails, or 0.
    """
    is_share = job in plan.shares
    cells = dict(enumerate(plan.cells(plan.column_of(job))))
    if is_share:
        cells = {number: cells[number] for number in plan.cells_of(job)}
    engines = [str(number) for number, cell in cells.items() if not cell.runs_users]
    needs = any(cell.needs for cell in cells.values())
    first = [["--cells", *engines]] if engines or needs else []
    alone = [["--cells", str(number)] for number, cell in cells.items() if cell.runs_users]
    last = [] if is_share else [["--found"]]
    for words in (*first, *alone, *last):
        command = [sys.executable, "-P", "-m", "engine.commands.job", *sys.argv[1:], *words]
        process = subprocess.Popen(following(command))

        def pass_on(number: int, _: object, process: subprocess.Popen = process) -> None:
            if number != signal.SIGINT:  # a terminal also sends it to the process
                process.send_signal(number)

        with preemption.handled(preemption.SIGNALS, pass_on):
            code = process.wait()
        if code:  # the process has said why
            return code if code > 0 else 128 - code
    return 0


def _compute(arguments: argparse.Namespace, plan: Plan) -> None:
    job = arguments.job
    check_modules(plan)
    if job == REPORT:
        report(plan)
        return
    logging.info("importing torch")  # takes seconds
    import torch

    from engine.machine import ranks
    from engine.machine.devices import device_name

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _check_gpu(plan.device)
    device = ranks.start(plan.device)
    with ranks.together():
        if ranks.rank() == 0:
            placed = Placed(device=device_name(device), processes=ranks.world())
            append_event(plan.place, job, placed)
    if job == DISTANCES:
        from engine.campaigns.distances_job import make_distances

        make_distances(plan, device)
    else:
        with allow_users_files(not arguments.found and stage_of(job) != EVALUATE):
            _work(arguments, plan, device)
    ranks.stop()


def _work(arguments: argparse.Namespace, plan: Plan, device: torch.device) -> None:
    job, numbers = arguments.job, arguments.cells
    if job == PREPARE:
        from engine.campaigns.prepare_job import prepare

        prepare(plan, device)
        return
    from engine.campaigns.column_job import evaluate_share, make_cells, make_column

    if stage_of(job) == EVALUATE:
        evaluate_share(plan, plan.shares[job], device)
    elif stage_of(job) == TRAIN or numbers is not None:
        make_cells(plan, job, device, plan.cells_of(job) if numbers is None else numbers)
    else:
        make_column(plan, plan.column_of(job), device)


def _check_gpu(device: str) -> None:
    """Raises ValueError if jobs on GPUs cannot work on this machine: for lack of a driver, or of
    the compiler and headers that Triton calls, which a cluster's nodes may lack where its login
    node has them."""
    import torch

    from engine.commands import doctor

    on_gpu = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not on_gpu):
        return
    facts = {"gpus": ["any"]} if on_gpu else doctor.torch_facts()
    look = doctor.compiler if on_gpu else doctor.gpu
    if (diagnosis := look(facts)).state != doctor.OK:
        known = f"{platform.node()}, with device={device}: {diagnosis.detail}"
        raise ValueError(f"{known}; fix: {diagnosis.cure}")


def report(plan: Plan) -> None:
    """Write the report, the last job. If artefacts are missing, the next run makes them again."""
    from engine.report import finish

    try:
        finish.finish(plan)
    except (ValueError, OSError):
        job_states.forget(plan.place)
        raise


def _take_gpus(number: int, device: str) -> None:
    """Claim GPUs, and restart this process so that it sees only those; with several ranks, restart
    it as their launcher.

    Every job then has its GPU under the same number, 0, which compiled graphs contain. A single
    process on a machine with at most one GPU is not restarted.
    """
    if device == "cpu" and number == 1:
        return
    from engine.machine.devices import pick_device

    on_gpus = number == 1 or pick_device(device).type == "cuda"
    names = gpu_names() if on_gpus else []
    if number == 1 and len(names) < 2:
        return
    if on_gpus:
        if number > len(names):
            raise ValueError(f"--ranks {number}, but torch sees {len(names)} GPUs")
        claimed = [names[place] for place in claim_gpus(names, number)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    module = "engine.commands.job"
    launcher = ["engine.machine.launcher", str(number)] if number > 1 else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", *launcher, module, *sys.argv[1:]])


def gpu_names() -> list[str]:
    """Names of the GPUs that this process sees, in its order; the same in all processes."""
    import torch

    count = range(torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in count]


def claim_gpus(names: Sequence[str], number: int = 1, folder: Path | None = None) -> list[int]:
    """Claims `number` GPUs, those with the fewest claims, and returns their indices in `names`.

    A claim is a locked file in `folder` (default: the user's on this machine). The operating system
    unlocks it when this process, or a program that replaces it by exec, ends for any reason.
    """
    assert 0 < number <= len(names)
    folder = folder or runtime_folder() / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    claimed: list[int] = []
    for turn in itertools.count():
        for place, name in enumerate(names):
            if place not in claimed and _lock(folder / f"{name}-{turn}"):
                claimed.append(place)
                if len(claimed) == number:
                    return claimed
    raise AssertionError("there is always a next turn")


def _lock(path: Path) -> bool:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    os.set_inheritable(file.fileno(), True)  # a launcher that replaces this process keeps it
    _held.append(file)
    return True


if __name__ == "__main__":
    sys.exit(main())
