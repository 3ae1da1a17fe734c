"""Real campaigns: run to their tables, ended in every way, resumed to the same tables."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import campaigns
import grids
import pytest
from campaigns import SETS

from engine import recipe

ALPHAS = ("0.0", "0.5", "1.0")  # of WiSE-FT, as tables write them
RIB = [sys.executable, "-m", "engine.cli"]
folder = campaigns.folder
pytestmark = pytest.mark.slow


def heed_signals() -> None:
    """Signals as a terminal sets them: background jobs ignore SIGINT, and those of nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


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
        preexec_fn=heed_signals,
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
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{runs}/" in words and "plan.json" in words:
                commands.append(words)
    return commands


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
    cwd = tmp_path_factory.mktemp("else {where}:")
    code, out, err = rib(folder, "runs=runs", cwd=cwd)
    assert code == 0, err[-3000:]
    assert "mRI" in out and str(cwd / "runs" / "shapes" / "report" / "index.html") in out
    assert sorted(path.name for path in cwd.iterdir()) == ["runs"]  # no .snakemake here
    return cwd / "runs"


def test_campaign_ends_with_its_tables_and_page(whole: Path) -> None:
    report = whole / "shapes" / "report"
    accuracy, mri = rows(report / "accuracy.csv"), rows(report / "mri.csv")
    assert list(accuracy[0]) == [
        "model", "method", "variant", "alpha", "setting", "downstream", "evaluated_on", "n",
        "accuracy", "headline",
    ]  # fmt: skip
    arm = ["model", "method", "variant", "alpha", "setting"]
    assert list(mri[0]) == [*arm, "mri", "mri_low", "mri_high", "headline"]
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
    assert "data-figure" in page and "http-equiv" not in page and 'src="http' not in page
    distances = rows(report / "distances.csv")
    assert [row[""] for row in distances] == ["upstream", *SETS]
    assert all(float(row[name]) > 0 for row in distances for name in places - {row[""]})
    assert "distance to upstream" in page


def test_all_ready_made_methods_end_in_one_complete_table(folder: Path, tmp_path: Path) -> None:
    head, _, methods_text = (folder / "shapes.yaml").read_text().partition("methods:")
    methods = [name for name in recipe.names("methods") if name != "flyp"]  # it is CLIP's alone
    added = [f"  {name}: {{}}\n" for name in methods if f"  {name}:" not in methods_text]
    (tmp_path / "shapes.yaml").write_text(f"{head}methods:{methods_text}{''.join(added)}")
    sets = ("outline", "few")
    words = ("runs=runs", "train.epochs=1", f"dataset.sets=[{','.join(sets)}]")
    code, out, err = rib(tmp_path, *words, cwd=tmp_path)
    assert code == 0, err[-3000:]
    (report,) = (tmp_path / "runs").glob("shapes-*/report")
    arms = [(method, "") for method in methods if method != "wise_ft"]
    arms += [("wise_ft", alpha) for alpha in ALPHAS]
    table_rows = [
        (row["method"], row["alpha"], row["downstream"], row["evaluated_on"])
        for row in rows(report / "accuracy.csv")
        if row["method"] != "pre" and 0 <= float(row["accuracy"]) <= 100
    ]
    places = ("upstream", *sets)
    assert sorted(table_rows) == sorted((*arm, d, p) for arm in arms for d in sets for p in places)
    mri = rows(report / "mri.csv")
    assert sorted((row["method"], row["alpha"]) for row in mri) == sorted(arms)
    assert all(abs(float(row["mri"])) <= 100 for row in mri)
    titles = [recipe.load("emoji", method=name).method.title for name in methods]
    printed = [line for line in out.splitlines() if "nan" not in line]
    assert len(titles) == len(methods)
    assert all(any(line.startswith(title) for line in printed) for title in titles), out


def test_ends_of_the_wise_curve_are_the_models_themselves(whole: Path) -> None:
    accuracy = rows(whole / "shapes" / "report" / "accuracy.csv")

    def column(method: str, alpha: str, downstream: str) -> dict[str, str]:
        key = (method, alpha, downstream)
        return {
            row["evaluated_on"]: row["accuracy"]
            for row in accuracy
            if (row["method"], row["alpha"], row["downstream"]) == key
        }

    for downstream in SETS:
        assert column("wise_ft", "0.0", downstream) == column("pre", "", "")
        assert column("wise_ft", "1.0", downstream) == column("fine_tune", "", downstream)


def test_second_run_does_nothing_and_is_fast(folder: Path, whole: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}

    before, started_at = state(), time.monotonic()
    code, out, _ = rib(folder, "runs=runs", cwd=whole.parent)
    assert code == 0 and "finished; nothing to do" in out and "mRI" in out
    assert time.monotonic() - started_at < 10
    assert state() == before


def test_metrics_recompute_the_same_tables(folder: Path, whole: Path) -> None:
    report = whole / "shapes" / "report"
    before = (report / "accuracy.csv").read_bytes(), (report / "mri.csv").read_bytes()
    (report / "accuracy.csv").unlink()
    command = [*RIB, "metrics", str(folder / "shapes.yaml"), "runs=runs"]
    subprocess.run(
        command, cwd=whole.parent, env=grids.environment(), check=True, capture_output=True
    )
    assert ((report / "accuracy.csv").read_bytes(), (report / "mri.csv").read_bytes()) == before


def test_dry_run_shows_the_jobs_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    code, out, err = rib(folder, "runs=runs", "--dry-run", cwd=tmp_path)
    assert code == 0, err
    for word in ("prepare", "column", "report", *(f"column-{name}" for name in SETS)):
        assert word in out + err, word
    assert not list(tmp_path.iterdir())


def test_a_snakemake_profile_steers_the_workflow(folder: Path, tmp_path: Path) -> None:
    words = ("runs=runs", "--dry-run", "--profile", "cluster")
    code, _, err = rib(folder, *words, cwd=tmp_path)
    assert code == 2 and "cluster/config.yaml" in err
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "config.yaml").write_text("until: [column]\ndry-run: true\n")
    code, out, err = rib(folder, "runs=runs", "--profile", "cluster", cwd=tmp_path)
    assert code == 2, out
    (log,) = (tmp_path / "runs").glob("shapes/plans/*/campaign.log")
    assert "rule column" in log.read_text() and "rule report" not in log.read_text()


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
            assert code == 2 and f"another campaign (process {process.pid} on " in err
        end(process)
        until(lambda: not alive(runs), 20, "the end of all jobs")
    assert not (runs / "shapes" / "report" / "index.html").exists()
    finished = {path: path.stat().st_mtime_ns for path in runs.glob("store/*/*/done.json")}
    code, _, err = rib(folder, "runs=runs", cwd=tmp_path)
    assert code == 0, err[-3000:]
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())  # nothing again
    for name in ("accuracy.csv", "mri.csv"):
        expected = (whole / "shapes" / "report" / name).read_bytes()
        assert (runs / "shapes" / "report" / name).read_bytes() == expected


def test_closed_terminal_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with started(folder, "runs=runs", cwd=tmp_path) as process:
        until(lambda: alive(tmp_path / "runs"), 60, "the first job")
        hang_up(process)
        assert not alive(tmp_path / "runs")


def test_failing_job_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    words = ("optimizer.lr=1e20", "train.warmup_steps=0", "dataset.sets=[outline,tinted]")
    code, _, err = rib(folder, "runs=runs", *words, cwd=tmp_path, cores=1)
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, err[-3000:]
    explanation = err.partition(errors[0])[2]
    assert "the loss is not finite" in explanation and "lower optimizer.lr" in explanation
    assert "campaign.log" in explanation and "Traceback" not in err
    (alone,) = re.findall("^  alone: (.*)$", explanation, re.MULTILINE)
    process = subprocess.run(
        ["sh", "-c", alone], env=grids.environment(), capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2 and "the loss is not finite" in process.stderr, process.stderr
    assert not alive(tmp_path / "runs")


def test_killed_job_is_called_killed(folder: Path, tmp_path: Path) -> None:
    with started(folder, "runs=runs", cwd=tmp_path) as process:
        until(lambda: working(tmp_path / "runs"), 120, "the first job at work")
        for number in working(tmp_path / "runs"):
            os.kill(number, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "prepare was killed (SIGKILL)" in err, err[-3000:]
    assert "logs/prepare.log" in err and re.search(
        r"engine.commands.job --plan .* prepare$", err, re.M
    )


def working(runs: Path) -> list[int]:
    """Processes of jobs below `runs` that have written a line of their log."""
    logs = [path for path in runs.glob("shapes*/plans/*/logs/*.log") if path.stat().st_size]
    return [number for number in jobs_of(runs) if logs]


def jobs_of(runs: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"engine.commands.job" in words and any(str(runs).encode() in w for w in words):
                yield int(path.parent.name)
