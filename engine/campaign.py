"""A campaign: the whole grid of one model, planned once and run by Snakemake.

A column (one downstream set) is a job: it trains its methods in one warm process and evaluates them
on every set. Snakemake resumes, retries and reaches clusters; what is finished is told by the
artefacts' own markers, and one lock keeps two campaigns out of the same folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engine import recipe
from engine.artifacts import digest, write_atomic
from engine.errors import CampaignError, RecipeError, nearest

WORKFLOW = Path(__file__).with_suffix(".smk")
POLL_S = 0.5
GRACE_S = 20  # for jobs to end after an interruption


@dataclass(frozen=True)
class Plan:
    """What a campaign will do; `folder` holds its plan, progress, log and report."""

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    folder: Path
    threads: int

    @property
    def path(self) -> Path:
        """The plan on disk, in a folder named after everything that determines the results."""
        identity = {
            method: dataclasses.asdict(recipe.load(self.name, self.overrides, method=method))
            for method in self.methods
        }
        return self.folder / "plans" / digest([identity, self.sets]) / "plan.json"


def plan(name: str, overrides: Sequence[str], cores: int) -> Plan:
    """Resolve every cell of a campaign, so that a mistake is found before any work is done."""
    if name not in recipe.names("campaigns") and not name.endswith(".yaml"):
        known = recipe.names("campaigns")
        raise RecipeError(f"there is no campaign {name!r}{nearest(name, known)}")
    methods = recipe.methods_of(name)
    for method in methods:
        resolved = recipe.load(name, overrides, method=method)
    sets = tuple(resolved.dataset.sets)
    folder = Path(resolved.runs) / Path(name).stem
    return Plan(name, tuple(overrides), tuple(methods), sets, folder, max(1, cores // len(sets)))


def read(path: Path) -> Plan:
    """A plan as a job finds it on disk."""
    values = json.loads(path.read_text())
    fields = {f.name: values[f.name] for f in dataclasses.fields(Plan)}
    for name in ("overrides", "methods", "sets"):
        fields[name] = tuple(fields[name])
    return Plan(**fields | {"folder": Path(fields["folder"])})


def run(the_plan: Plan, cores: int, dry_run: bool, extra: Sequence[str] = ()) -> None:
    """Run what is missing of a campaign. Raises CampaignError when a job fails."""
    with locked(the_plan.folder):
        path = the_plan.path
        values = dataclasses.asdict(the_plan) | {"python": sys.executable}
        write_atomic(path, json.dumps(values, indent=1, default=str).encode())
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW)),
            *("--cores", str(cores), "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime"),
            *("--config", f"plan={path}"),
            *(["--dry-run", "--quiet", "rules"] if dry_run else []),
            *extra,
        ]
        if dry_run:
            subprocess.run(command, check=True)
            return
        for left_over in Path(the_plan.folder.parent).glob("store/*/.*"):
            shutil.rmtree(left_over, ignore_errors=True)
        _watch(command, the_plan, path.parent)


def finished(the_plan: Plan) -> bool:
    """Whether the report of exactly this plan exists."""
    return (the_plan.path.parent / "done" / "report").is_file() and report_page(the_plan).is_file()


def report_page(the_plan: Plan) -> Path:
    """The page that a campaign ends with."""
    return the_plan.folder / "report" / "index.html"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; CampaignError if another campaign does. The kernel frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise CampaignError(
                f"another campaign (process {file.read().strip() or 'unknown'}) is at work in "
                f"{folder}; wait for it, or use runs=ANOTHER_FOLDER"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def advance(path: Path, name: str, done: int, total: int) -> None:
    """A job's report of how far it is, for the campaign's progress bar."""
    values = {"done": done, "total": total, "at": time.time()}
    write_atomic(path.parent / "progress" / f"{name}.json", json.dumps(values).encode())


def _watch(command: Sequence[str], the_plan: Plan, place: Path) -> None:
    log_path = place / "campaign.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _show_progress(process, the_plan, place)
        except KeyboardInterrupt:
            _stop(process)
            raise
    if process.returncode or not (place / "done" / "report").is_file():
        raise CampaignError(f"the campaign stopped; {_last_error(log_path)} (log: {log_path})")


def _show_progress(process: subprocess.Popen, the_plan: Plan, place: Path) -> None:
    columns = len(the_plan.methods) + 1
    total = len(the_plan.sets) * columns + 2
    with tqdm(total=total, desc=f"{the_plan.name} grid", unit="cell", smoothing=0.1) as bar:
        while process.poll() is None:
            bar.n = min(total, sum(_done(place)))
            bar.refresh()
            time.sleep(POLL_S)
        bar.n = total if process.returncode == 0 else bar.n
        bar.refresh()


def _done(place: Path) -> Iterator[int]:
    for path in (place / "progress").glob("*.json"):
        yield json.loads(path.read_text())["done"]


def _stop(process: subprocess.Popen) -> None:
    """End the workflow and every job: they are one process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


def _last_error(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error: ")), "no error line")
