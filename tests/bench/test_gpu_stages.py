"""The stages of `make gpu`: what becomes of each, what is written when, and what enters a page."""

from __future__ import annotations

import json

import pytest

from bench.gpu import __main__ as command
from bench.gpu import write_up
from bench.gpu.stages import Stage, chosen, stages

NAMES = ["training", "tests", "optimizer", "kernels", "transport", "probe", "engine", "profile"]
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
    return status, json.loads((out / "summary.json").read_text())["stages"]


def test_a_red_stage_stops_no_other_and_is_named_at_the_end(replaced, tmp_path, capfd):
    replaced += [stage("probe", "exit(3)", "print('next')"), stage("tests", "print('well')")]
    status, outcomes = run(tmp_path)
    assert status == 1 and capfd.readouterr().out.endswith("\nred: probe\n")
    assert [outcome["state"] for outcome in outcomes.values()] == ["red", "green"]
    assert "exit status 3" in outcomes["probe"]["why"][0]
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
    stopped, second = outcomes["probe"]["why"]
    assert "stopped after" in stopped and "no time was left" in second


def test_a_stage_without_its_packages_is_not_run_and_they_are_named(replaced, tmp_path, capfd):
    replaced += [stage("engine", "exit(1)", needs=("no_such_package", "json", "other_package"))]
    status, outcomes = run(tmp_path)
    assert status == 1  # nothing ran
    assert outcomes["engine"] | {"seconds": 0} == {
        "state": "not run", "seconds": 0, "missing": ["no_such_package", "other_package"],
    }  # fmt: skip
    printed = capfd.readouterr().out
    assert "this Python lacks no_such_package, other_package" in printed
    assert "not run: engine" in printed
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
    "device": "NVIDIA H100", "kind": "cuda", "commit": "abc",
    "versions": {"torch": "2.11", "triton": "3.6", "timm": "1.0"},
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder as the stages leave it."""
    row = {
        "contest": "EWC", "peer": "torch", "subject_ms": 1.234, "peer_ms": 1.0, "predicted": 1.29,
        "measured": 1.2345, "rounds": 5, "target": None, "verdict": "-",
    }  # fmt: skip
    bench = {"case": "optimizer", "machine": MACHINE, "gate": "green", "rows": [row]}
    items = {"eigvalsh": {"us": 12.345, "took_s": 1.0, "predicted": "1.4 ms"}}
    parts = [{"part": "ewc on first", "seconds": 2.0, "images_s": 4321.0, "mfu": 0.41}]
    headline = {"what": "FT", "batch": 64, "compiled": True, "ms": 15.04, "mfu": 0.451}
    states = {"probe": {"state": "green", "seconds": 9.6}}
    states["engine"] = {"state": "red", "seconds": 480.0, "why": ["stopped after 480 s"]}
    for name, content in {
        "summary": {"device": "cuda", "stages": states},
        "headline": {"machine": MACHINE, "rows": [headline]},
        "probe": {"machine": MACHINE, "items": items},
        "optimizer-nvidia-h100": bench,
        "engine": {"machine": MACHINE, "parts": parts},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_results_enter_a_page_between_its_marks(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{write_up.BEGIN}\nold\n{write_up.END}\nafter\n")
    for _ in range(2):  # the second time over the first
        assert write_up.main([str(results), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{write_up.END}\nafter\n")
    assert "old" not in text and text.count("NVIDIA H100; torch 2.11") == 1
    for line in (
        "| engine | red | 480 | stopped after 480 s |",
        "| FT | 64 | True | - | 15 | 0.451 | - |",
        "| eigvalsh | us 12.3 | 1.4 ms |",
        "| EWC | torch | 1.23 | 1 | 1.29 | 1.23, 5 | - - |",
        "| ewc on first | 2 | 4.32e+03 | 0.41 |",
    ):
        assert line in text.splitlines()


def test_results_of_a_cpu_and_pages_without_marks_are_refused(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    assert write_up.main([str(results), "--into", str(page)]) == 2
    assert "has no lines <!-- make gpu: begin -->" in capsys.readouterr().out
    (results / "summary.json").write_text(json.dumps({"device": "cpu", "stages": {}}))
    assert write_up.main([str(results), "--into", str(page)]) == 2
    assert "results of a CPU" in capsys.readouterr().out and page.read_text() == "nothing"
    assert write_up.main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_the_programs_of_stages_run_on_a_cpu(tmp_path, monkeypatch):
    """Those left out start the bench, as `engine` does too, or pytest, whose tests need a GPU."""
    monkeypatch.setenv("PYTHONPATH", str(command.ROOT))
    names = ["probe", "engine", "profile"]
    status, outcomes = run(tmp_path, *names, "--small")
    assert status == 0, outcomes
    assert {outcome["state"] for outcome in outcomes.values()} == {"green"}
    for file in ("probe.json", "evaluation-cpu.json", "engine.json", "profile.json"):
        assert json.loads((tmp_path / file).read_text())["machine"]["kind"] == "cpu"
    probe = json.loads((tmp_path / "probe.json").read_text())["items"]
    assert {f"step of {name}" for name in ("ewc", "spd", "lora")} < probe.keys()
    assert not [entry for entry in probe.values() if "error" in entry]
    text = write_up.written(tmp_path)
    assert "the numbers mean nothing" in text and "| evaluation of second |" in text
