"""The stages of `make gpu`: what becomes of each, and what is written when."""

from __future__ import annotations

import json

import pytest

from bench.gpu import __main__ as command
from bench.gpu.stages import Stage, chosen, stages

NAMES = ["training", "tests", "kernels", "transport", "probe", "engine"]
PROGRAM = "print('begun'); "


def stage(name: str, *programs: str, needs: tuple[str, ...] = ()) -> Stage:
    return Stage(name, tuple(("-c", PROGRAM + program) for program in programs), needs)


@pytest.fixture
def replaced(monkeypatch):
    """Stages in place of the real ones."""
    every: list[Stage] = []
    monkeypatch.setattr(command, "stages", lambda *_: every)
    return every


def run(out, *words: str) -> tuple[int, dict]:
    status = command.main(["--device", "cpu", "--out", str(out), *words])
    rows = json.loads((out / "summary.json").read_text())["rows"]
    return status, {row["stage"]: row for row in rows}


def test_a_red_stage_stops_no_other_and_is_named_at_the_end(replaced, tmp_path, capfd):
    replaced += [stage("probe", "exit(3)", "print('next')"), stage("tests", "print('well')")]
    status, outcomes = run(tmp_path)
    assert status == 1 and capfd.readouterr().out.endswith("\nred: probe\n")
    assert [outcome["state"] for outcome in outcomes.values()] == ["red", "green"]
    assert "exit status 3" in outcomes["probe"]["why"]
    assert (tmp_path / "probe.log").read_text() == "begun\nbegun\nnext\n"
    status, outcomes = run(tmp_path, "tests")
    assert status == 0 and list(outcomes) == ["tests"]


def test_a_stage_ends_with_its_time_and_leaves_no_process(replaced, tmp_path):
    left = tmp_path / "left"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(left)!r}).touch()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    replaced += [stage("probe", program, "pass"), stage("tests", "pass")]
    status, outcomes = run(tmp_path, "--minutes", "0.01")
    assert status == 1 and outcomes["probe"]["seconds"] < 2.5 and not left.exists()
    assert "stopped after" in outcomes["probe"]["why"]
    assert "no time was left" in outcomes["probe"]["why"]


def test_a_stage_without_its_packages_is_not_run_and_they_are_named(replaced, tmp_path, capfd):
    replaced += [stage("engine", "exit(1)", needs=("no_such_package", "json", "numpy>=999.0"))]
    status, outcomes = run(tmp_path)
    assert status == 1  # nothing ran
    why = "this Python lacks no_such_package, numpy>=999.0"
    assert outcomes["engine"] == {"stage": "engine", "state": "not run", "why": why}
    printed = capfd.readouterr().out
    assert why in printed and "not run: engine" in printed
    replaced.append(stage("tests", "pass"))
    assert run(tmp_path)[0] == 0


def test_stages_are_those_of_the_page_and_others_are_refused(tmp_path, capsys):
    every = stages(tmp_path, "cuda", small=False)
    assert [stage.name for stage in every] == NAMES == [s.name for s in chosen((), every)]
    page = (command.ROOT / "docs" / "gpu.md").read_text()
    assert all(f"| `{name}` |" in page for name in NAMES)
    assert command.main(["speed", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "no stage speed; there are training, tests" in capsys.readouterr().out


def test_without_a_gpu_the_stages_say_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_sees_gpu", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "torch sees no GPU here; --device cpu --small" in capsys.readouterr().out


MACHINE = {
    "device": "NVIDIA H100", "commit": "abc",
    "versions": {"torch": "2.11", "triton": "3.6", "timm": "1.0"},
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder as the stages leave it."""
    row = {"what": "FT", "batch": 64, "compiled": True, "ms": 15.04, "mfu": 0.451}
    failed = {"message": "RuntimeError: no memory", "rows": []}
    for name, content in {
        "headline": {"rows": [row, {"what": "LwF", "error": "RuntimeError"}]}, "kernels": failed,
    }.items():  # fmt: skip
        file = tmp_path / f"{name}-nvidia-h100.json"
        file.write_text(json.dumps({"name": name, "machine": MACHINE} | content))
    return tmp_path


def test_results_are_written_as_tables(results):
    rows = [{"stage": "probe", "state": "red", "seconds": 480.0, "why": "stopped after 480 s"}]
    lines = command.written(results, rows).splitlines()
    for line in (
        "| probe | red | 480 | stopped after 480 s |",
        "**headline**: NVIDIA H100; torch 2.11, triton 3.6, timm 1.0; commit abc.",
        "| FT | 64 | True | 15 | 0.451 | - |",
        "| LwF | - | - | - | - | RuntimeError |",
        "RuntimeError: no memory",
    ):
        assert line in lines


@pytest.mark.slow
def test_the_programs_of_stages_run_on_a_cpu(tmp_path, monkeypatch):
    """Those left out start the bench, as `engine` does too, or pytest, whose tests need a GPU."""
    monkeypatch.setenv("PYTHONPATH", str(command.ROOT))
    names = ["probe", "engine"]
    status, outcomes = run(tmp_path, *names, "--small")
    assert status == 0, outcomes
    assert {outcome["state"] for outcome in outcomes.values()} == {"green"}
    for name in ("probe", "evaluation", "engine"):
        content = json.loads((tmp_path / f"{name}-cpu.json").read_text())
        assert content["machine"]["kind"] == "cpu" and content["rows"]
        assert not [row for row in content["rows"] if "error" in row]
    assert "| evaluation of second |" in (tmp_path / "results.md").read_text()
