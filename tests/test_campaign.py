"""Campaigns: planned before they run, resumed after any end, and never leaving a process behind."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grids
import pytest

from engine import campaign, cli
from engine.errors import CampaignError, RecipeError

SETS, METHODS = ("outline", "tinted", "few"), ("fine_tune", "linear_probe", "wise_ft")
RIB = [sys.executable, "-m", "engine.cli"]
GRID = """\
model: {folder}/model.yaml
dataset: {folder}/data.yaml
downstream: outline
device: cpu
optimizer: {{name: sgd, lr: 0.02}}
train: {{epochs: 2, batch_size: 12, warmup_steps: 2, zero_stage: 0}}
evaluate: {{split: holdout}}
methods:
  fine_tune: {{}}
  linear_probe: {{train: {{epochs: 3}}}}
  wise_ft: {{method: {{alphas: [0.0, 0.5, 1.0]}}}}
"""
MODEL = """\
name: tiny
arch: test_vit
image_size: 32
weights: {source: random}
head: {fit: true, epochs: 4, batch_size: 8, lr: 0.01}
"""
DATA = "name: shapes\nkind: folder\nroot: {folder}/images\nsets: [outline, tinted, few]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawings and the campaign's YAML; a space in its path, as users have them."""
    folder = tmp_path_factory.mktemp("my campaign")
    grids.draw(folder / "images")
    (folder / "model.yaml").write_text(MODEL)
    (folder / "data.yaml").write_text(DATA.format(folder=folder))
    (folder / "shapes.yaml").write_text(GRID.format(folder=folder))
    return folder


def planned(folder: Path, *words: str, cores: int = 2) -> campaign.Plan:
    return campaign.plan(str(folder / "shapes.yaml"), words, cores)


# Planning.


def test_plan_holds_the_whole_grid(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, f"runs={tmp_path}")
    assert (plan.methods, plan.sets) == (METHODS, SETS)
    assert plan.folder == tmp_path / "shapes" and not plan.folder.exists()
    assert not campaign.finished(plan) and campaign.columns_missing(plan) == list(SETS)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 1), (8, 2)])
def test_threads_of_a_column_share_the_cores(folder: Path, cores: int, threads: int) -> None:
    assert planned(folder, cores=cores).threads == threads


def test_plans_place_is_named_after_what_determines_the_results(
    folder: Path, tmp_path: Path
) -> None:
    runs = f"runs={tmp_path}"
    places = [
        planned(folder, runs).path,
        planned(folder, runs, cores=8).path,  # changes nothing
        planned(folder, runs, "seed=1").path,
        planned(folder, runs, "model.head.lr=0.02").path,
        planned(folder, runs, "dataset.sets=[outline,tinted]").path,
    ]
    assert places[0] == places[1] and len(set(places)) == 4
    assert all(place.is_absolute() for place in places)


def test_plan_knows_the_content_of_a_users_method(folder: Path, tmp_path: Path) -> None:
    module = tmp_path / "own.py"
    module.write_text("from engine.methods.fine_tune import Method, Recipe\n")
    (tmp_path / "own.yaml").write_text(f"name: own\ntitle: Own\nmodule: {module}\n")
    text = (folder / "shapes.yaml").read_text().replace("fine_tune: {}", f"{tmp_path}/own.yaml: {{}}")
    (tmp_path / "shapes.yaml").write_text(text)
    before = planned(tmp_path).path
    module.write_text(module.read_text() + "# changed\n")
    assert planned(tmp_path).path != before


def test_plan_on_disk_is_read_back(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, f"runs={tmp_path}", "seed=2")
    import dataclasses
    import json

    path = tmp_path / "plan.json"
    values = dataclasses.asdict(plan) | {"python": "p", "cwd": "/"}
    path.write_text(json.dumps(values, default=str))
    assert campaign.read(path) == plan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epoch=1"], "unknown key 'train.epoch'; did you mean 'epochs'"),
        (["downstream=outlined"], "did you mean 'outline'"),
        (["dataset.sets=[outline]"], "needs two different sets or more"),
        (["dataset.sets=[outline,outline]"], "needs two different sets or more"),
        (["evaluate.split=all"], r"set evaluate\.split=holdout, or dataset\.holdout=0"),
    ],
)
def test_mistake_is_found_before_any_work(
    folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(folder, f"runs={tmp_path / 'runs'}", *words)
    assert not (tmp_path / "runs").exists()


def test_unknown_campaign_cores_and_words(capsys: pytest.CaptureFixture, folder: Path) -> None:
    for words, message in (
        (["campaign", "emojis"], "there is no campaign 'emojis'; did you mean 'emoji'?"),
        (["campaign", "emoji", "--cores", "0"], "--cores 0: at least one is needed"),
        (["campaign", str(folder / "data.yaml")], "is no campaign; it needs `methods:`"),
        (["metrics", str(folder / "shapes.yaml"), "runs=/nowhere"], "lacks outline, tinted, few"),
    ):
        assert cli.main(words) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and message in shown and shown.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        cli.main(["campaign", "emoji", "--core"])
    assert caught.value.code == 2


def test_recipes_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "emoji" in shown and "efficientnet_lite0" in shown and "wise_ft" in shown


# One campaign a folder, and nothing that outlives it.


def test_second_campaign_on_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with campaign.locked(tmp_path):
        with pytest.raises(CampaignError, match=rf"\(process {os.getpid()}\) is at work in {tmp_path}"):
            with campaign.locked(tmp_path):
                pass
        with campaign.locked(tmp_path / "other"):
            pass
    with campaign.locked(tmp_path):  # free again
        pass


def test_killed_campaign_frees_its_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom engine import campaign\n"
        "with campaign.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(CampaignError, match=rf"process {process.pid}"), campaign.locked(tmp_path):
            pass
        process.kill()
    with campaign.locked(tmp_path):
        pass


JOB = """
import sys, time
from pathlib import Path
from engine import campaign
campaign.end_with_campaign(campaign.Plan("x", (), (), (), Path(sys.argv[1]), 1))
print("at work", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def job(folder: Path, leash: str) -> Iterator[subprocess.Popen]:
    """A job's process, in a group of its own, that believes `leash` to be its campaign."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {campaign.LEASH: leash},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


HERE = f"{os.uname().nodename} {os.getpid()}"


def test_job_ends_with_its_campaign(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(contextlib.ExitStack())
        held.enter_context(campaign.locked(tmp_path))
        process = stack.enter_context(job(tmp_path, HERE))
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        time.sleep(0.3)
        assert process.poll() is None
        held.close()
        assert process.wait(10) == -signal.SIGKILL


def test_job_whose_campaign_is_gone_does_not_start(tmp_path: Path) -> None:
    tmp_path.joinpath(".lock").touch()
    with job(tmp_path, HERE) as process:
        assert process.wait(20) == -signal.SIGKILL
    other = HERE.split()[0] + " 1"  # or has been followed by another one
    with campaign.locked(tmp_path), job(tmp_path, other) as process:
        assert process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("leash", ["", "elsewhere 1"])
def test_job_by_hand_or_elsewhere_follows_nobody(tmp_path: Path, leash: str) -> None:
    with job(tmp_path, leash) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        assert process.poll() is None


def test_left_overs_go_only_when_they_are_old(folder: Path, tmp_path: Path) -> None:
    """Another campaign, or a single cell, may be at work in the same store."""
    plan = planned(folder, f"runs={tmp_path}")
    old, young = (tmp_path / "store" / "cells" / name for name in (".old.1", ".young.2"))
    for left_over in (old, young):
        left_over.mkdir(parents=True)
    os.utime(old, (time.time() - campaign.LEFT_OVER_S - 1,) * 2)
    campaign._clean(plan)
    assert not old.exists() and young.exists()


def test_markers_without_a_store_are_dropped(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, f"runs={tmp_path}")
    marker = plan.path.parent / "done" / "column-few"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (tmp_path / "store").mkdir()
    campaign._clean(plan)
    assert marker.exists()
    (tmp_path / "store").rmdir()
    campaign._clean(plan)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("error: first\nnoise\nerror: second\nFinished\n", "error: second"),
        ("Traceback\n  x\ntorch.cuda.OutOfMemoryError: no room\nerror in rule\n", "no room"),
        ("Killed\n", "Killed"),
        ("nothing\n", "no job said why"),
        ("", "no job said why"),
    ],
)
def test_last_error_is_of_this_run(tmp_path: Path, log: str, said: str) -> None:
    path = tmp_path / "campaign.log"
    path.write_text("error: of an earlier run\n" + log)
    assert said in campaign._last_error(path, len("error: of an earlier run\n"))


def test_progress_in_a_log_file_is_a_few_lines(folder: Path, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom engine import campaign\n"
        "plan = campaign.Plan('x', (), ('a', 'b'), ('s', 't'), Path('.'), 1)\n"
        "process = subprocess.Popen(['sleep', '3'])\n"
        "campaign._show_progress(process, plan, Path(sys.argv[1]))"
    )
    campaign.advance(tmp_path / "plan.json", "s", 2, 3)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    states = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert 1 <= len(states) <= 3 and "8/8" in states[-1]


# Real campaigns.


@contextlib.contextmanager
def started(folder: Path, *words: str, cwd: Path, cores: int = 2) -> Iterator[subprocess.Popen]:
    """`rib campaign` in a process group of its own, from a working folder that is not ours."""
    process = subprocess.Popen(
        [*RIB, "campaign", str(folder / "shapes.yaml"), "--cores", str(cores), *words],
        cwd=cwd,
        env=grids.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()  # its jobs follow it
        process.communicate()


def rib(folder: Path, *words: str, cwd: Path, cores: int = 2) -> tuple[int, str, str]:
    with started(folder, *words, cwd=cwd, cores=cores) as process:
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def alive(runs: Path) -> list[str]:
    """Command lines of processes that work for a campaign below `runs`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{runs}/" in words and "plan.json" in words:
                found.append(words)
    return found


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `runs` folder of a campaign that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    code, out, err = rib(folder, "runs=runs", cwd=cwd)
    assert code == 0, err[-3000:]
    assert "mRI" in out and str(cwd / "runs" / "shapes" / "report" / "index.html") in out
    assert sorted(path.name for path in cwd.iterdir()) == ["runs"]  # no .snakemake here
    return cwd / "runs"


@pytest.mark.slow
def test_campaign_ends_with_its_tables_and_page(whole: Path) -> None:
    report = whole / "shapes" / "report"
    accuracy, mri = rows(report / "accuracy.csv"), rows(report / "mri.csv")
    assert list(accuracy[0]) == [
        "model", "method", "variant", "alpha", "downstream", "evaluated_on", "n", "accuracy"
    ]  # fmt: skip
    assert list(mri[0]) == ["model", "method", "variant", "alpha", "mri", "mri_low", "mri_high"]
    places = {*SETS, "upstream"}
    before = [row for row in accuracy if row["method"] == "pre"]
    assert {row["evaluated_on"] for row in before} == places
    assert {row["downstream"] for row in before} == {""}
    after = [row for row in accuracy if row["method"] != "pre"]
    arms = {(row["method"], row["alpha"]) for row in after}
    assert arms == {("fine_tune", ""), ("linear_probe", ""), *(("wise_ft", a) for a in ALPHAS)}
    assert len(after) == len(arms) * len(SETS) * len(places)
    assert all(0 <= float(row["accuracy"]) <= 100 and int(row["n"]) > 0 for row in accuracy)
    assert all(float(r["mri_low"]) <= float(r["mri"]) <= float(r["mri_high"]) for r in mri)
    assert len(mri) == len(arms)
    page = (report / "index.html").read_text()
    assert "<svg" in page and "http-equiv" not in page and 'src="http' not in page


ALPHAS = ("0.0", "0.5", "1.0")


@pytest.mark.slow
def test_ends_of_the_wise_curve_are_the_models_themselves(whole: Path) -> None:
    accuracy = rows(whole / "shapes" / "report" / "accuracy.csv")

    def column(method: str, alpha: str, downstream: str) -> dict[str, str]:
        wanted = (method, alpha, downstream)
        return {
            row["evaluated_on"]: row["accuracy"]
            for row in accuracy
            if (row["method"], row["alpha"], row["downstream"]) == wanted
        }

    for downstream in SETS:
        assert column("wise_ft", "0.0", downstream) == column("pre", "", "")
        assert column("wise_ft", "1.0", downstream) == column("fine_tune", "", downstream)


@pytest.mark.slow
def test_second_run_does_nothing_and_is_fast(folder: Path, whole: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}

    before, started_at = state(), time.monotonic()
    code, out, _ = rib(folder, "runs=runs", cwd=whole.parent)
    assert code == 0 and "finished; nothing to do" in out and "mRI" in out
    assert time.monotonic() - started_at < 10
    assert state() == before


@pytest.mark.slow
def test_metrics_recompute_the_same_tables(folder: Path, whole: Path) -> None:
    report = whole / "shapes" / "report"
    before = (report / "accuracy.csv").read_bytes(), (report / "mri.csv").read_bytes()
    (report / "accuracy.csv").unlink()
    command = [*RIB, "metrics", str(folder / "shapes.yaml"), "runs=runs"]
    subprocess.run(
        command, cwd=whole.parent, env=grids.environment(), check=True, capture_output=True
    )
    assert ((report / "accuracy.csv").read_bytes(), (report / "mri.csv").read_bytes()) == before


@pytest.mark.slow
def test_dry_run_shows_the_jobs_and_writes_only_its_plan(folder: Path, tmp_path: Path) -> None:
    code, out, err = rib(folder, "runs=runs", "--dry-run", cwd=tmp_path)
    assert code == 0, err
    for word in ("prepare", "column", "report", *(f"column-{name}" for name in SETS)):
        assert word in out + err, word
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    kept = {path.name for path in files if ".snakemake" not in path.parts}
    assert kept == {"plan.json", ".lock"}


def at_work(runs: Path) -> bool:
    """Whether a column has trained its first cell."""
    return bool(list(runs.glob("store/cells/fine_tune-*/done.json")))


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def hang_up(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 130


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("end", [interrupt, kill])
def test_ended_campaign_leaves_no_process_and_is_resumed(
    folder: Path, whole: Path, tmp_path: Path, end: Callable[[subprocess.Popen], None]
) -> None:
    runs = tmp_path / "runs"
    with started(folder, "runs=runs", cwd=tmp_path) as process:
        until(lambda: at_work(runs) or process.poll() is not None, 120, "the first cell")
        assert process.poll() is None and alive(runs)
        if end is interrupt:
            code, _, err = rib(folder, "runs=runs", cwd=tmp_path)
            assert code == 2 and f"another campaign (process {process.pid}) is at work" in err
        end(process)
        until(lambda: not alive(runs), 20, "the end of all jobs")
    assert not (runs / "shapes" / "report" / "index.html").exists()
    finished = {path: path.stat().st_mtime_ns for path in runs.glob("store/*/*/done.json")}
    code, _, err = rib(folder, "runs=runs", cwd=tmp_path)
    assert code == 0, err[-3000:]
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())  # nothing again
    for name in ("accuracy.csv", "mri.csv"):
        wanted = (whole / "shapes" / "report" / name).read_bytes()
        assert (runs / "shapes" / "report" / name).read_bytes() == wanted


@pytest.mark.slow
def test_closed_terminal_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with started(folder, "runs=runs", cwd=tmp_path) as process:
        until(lambda: alive(tmp_path / "runs"), 60, "the first job")
        hang_up(process)
        assert not alive(tmp_path / "runs")


@pytest.mark.slow
def test_failing_job_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    words = ("optimizer.lr=1e20", "train.warmup_steps=0", "dataset.sets=[outline,tinted]")
    code, _, err = rib(folder, "runs=runs", *words, cwd=tmp_path, cores=1)
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, err[-3000:]
    assert "the loss is not finite" in errors[0] and "lower optimizer.lr" in errors[0]
    assert "campaign.log" in errors[0] and "Traceback" not in err
    assert not alive(tmp_path / "runs")


def test_lock_file_is_not_inherited(tmp_path: Path) -> None:
    """A child that lives on must not hold the folder."""
    with campaign.locked(tmp_path):
        child = subprocess.Popen(["sleep", "5"])
    with (tmp_path / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.kill()
    child.wait()
