"""The stages of `make gpu`: what becomes of each, what is written, what a bare machine runs."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import campaign, gpu, photos, ranks
from bench.counts import LIMITS
from bench.gpu import ROOT, Stage, stages
from engine.commands import doctor
from engine.cost import estimate, rates, work
from engine.recipe.campaigns import recipe_names
from helpers import fork_server

NAMES = ["preflight", "tests", "kernels", "compile", "headline", "smoke", "ranks", "train"]
NAMES += ["transport", "evaluation", "engine"]
EXHAUSTIVE = pytest.mark.exhaustive
forked = fork_server.forked
BARE = os.environ | {
    "WITHOUT_PACKAGES": "deepspeed,msgspec,resvg_py,snakemake",
    "PYTHONPATH": f"{ROOT / 'tests' / 'without_packages'}:{ROOT}",
}


def stage(name: str, program: str, *needs: str) -> Stage:
    return Stage(name, ("-c", "print('begun'); " + program), needs)


@pytest.fixture
def replaced(monkeypatch):
    """Stages in place of the real ones."""
    every: list[Stage] = []
    monkeypatch.setattr(gpu, "stages", lambda *_: every)
    return every


def run(out, *words: str) -> tuple[int, dict]:
    status = gpu.main(["--device", "cpu", "--out", str(out), *words])
    return status, summary(out)


def summary(out: Path) -> dict:
    rows = json.loads((out / "summary.json").read_text())["rows"]
    return {row.pop("stage"): row for row in rows}


def rows_of(out: Path, name: str) -> list[dict]:
    content = json.loads((out / f"{name}-cpu.json").read_text())
    assert content["machine"]["kind"] == "cpu" and content["rows"]
    return content["rows"]


def test_a_red_stage_stops_no_other_and_is_named_at_the_end(replaced, tmp_path, capfd):
    replaced += [stage("kernels", "exit(3)"), stage("tests", "print('well')")]
    status, outcomes = run(tmp_path)
    assert status == 1 and capfd.readouterr().out.endswith("\nred: kernels\n")
    assert [outcome["state"] for outcome in outcomes.values()] == ["red", "green"]
    assert outcomes["kernels"]["why"] == "exit status 3"
    assert (tmp_path / "tests.log").read_text() == "begun\nwell\n"
    assert "| kernels | red |" in (tmp_path / "results.md").read_text()
    status, outcomes = run(tmp_path, "tests")
    assert status == 0 and list(outcomes) == ["tests"]


def test_a_stage_ends_with_its_time_and_leaves_no_process(replaced, tmp_path):
    left = tmp_path / "left"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(left)!r}).touch()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    replaced.append(stage("kernels", program))
    status, outcomes = run(tmp_path, "--minutes", "0.01")
    assert status == 1 and outcomes["kernels"]["seconds"] < 2.5 and not left.exists()
    assert "stopped after" in outcomes["kernels"]["why"]


def test_a_stage_without_its_packages_is_not_run_and_they_are_named(replaced, tmp_path, capfd):
    replaced.append(stage("engine", "exit(1)", "no_such_package", "json", "numpy>=999.0"))
    status, outcomes = run(tmp_path)
    assert status == 1  # nothing ran
    why = "this Python lacks no_such_package, numpy>=999.0"
    assert outcomes["engine"] == {"state": "not run", "why": why}
    printed = capfd.readouterr().out
    assert why in printed and "not run: engine" in printed
    replaced.append(stage("tests", "pass"))
    assert run(tmp_path)[0] == 1, "a stage was not run"
    assert run(tmp_path, "tests")[0] == 0


@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_stages_share_compiled_code_in_the_callers_folder_if_any(
    variable, replaced, tmp_path, monkeypatch
):
    program = f"import os, pathlib; place = pathlib.Path(os.environ['{variable}']); "
    making = program + "place.mkdir(parents=True); (place / 'graph').touch()"
    replaced.append(stage("kernels", making))
    replaced.append(stage("headline", program + "exit(not (place / 'graph').exists())"))
    monkeypatch.delenv(variable, raising=False)
    assert run(tmp_path)[0] == 0
    assert len(list(tmp_path.glob("compiled/*/graph"))) == 1
    monkeypatch.setenv(variable, str(tmp_path / "callers"))
    assert run(tmp_path)[0] == 0 and (tmp_path / "callers" / "graph").is_file()


def test_the_counts_of_the_engines_stage_are_those_of_its_plan(tmp_path, monkeypatch):
    """Drawn with two of its twenty images a class, since drawing takes time."""
    drawn = []

    def draw(folder, seed, classes, images, side, real=photos.draw):
        drawn.append(images)
        real(folder, seed, classes, 2, 8)

    monkeypatch.setattr(photos, "draw", draw)
    plan = campaign.planned(tmp_path, torch.device("cuda"), small=False)
    (images,), counts = set(drawn), LIMITS["engine"][1]
    predicted = estimate.campaign_cost(plan.recipes, len(plan.rows))
    column, shared = work.in_a_job(predicted.columns[0]), predicted.shared
    of_images = {
        "trained": sum(each.images for each in column if each.name.startswith("training")),
        "evaluated": sum(w.images for w in (*column, *shared) if not w.trained and not w.fp32),
        "fp32": sum(each.images for each in shared if each.fp32),
    }
    assert {name: images // 2 * count for name, count in of_images.items()} == {
        name: getattr(counts, name) for name in of_images
    }
    (traces,) = [each.gpu_s for each in column if each.gpu_s > rates.START_S]
    assert traces == counts.traces * rates.TRACE_S


def test_all_stages_share_one_budget(replaced, tmp_path):
    replaced += [stage("tests", "import time; time.sleep(9)"), stage("kernels", "pass")]
    status, outcomes = run(tmp_path, "--minutes", "0.03")
    assert status == 1 and outcomes["tests"]["why"].startswith("stopped after")
    assert outcomes["kernels"] == {"state": "not run", "why": "no time is left (--minutes)"}


def test_stages_are_those_of_the_page_and_what_cannot_run_is_refused(tmp_path, capsys, monkeypatch):
    assert [stage.name for stage in stages(tmp_path, "cuda", small=False)] == NAMES
    page = (ROOT / "bench" / "README.md").read_text()
    limits = [(stage.name, stage.minutes) for stage in stages(tmp_path, "cuda", small=False)]
    for name, minutes in limits:
        predicted = LIMITS[name][1].predicted_s() / 60
        assert f"| `{name}` | {minutes:g} | {predicted:.1f} |" in page
        assert rates.SPREAD * predicted <= minutes, f"{name} ends by the clock"
    assert sum(minutes for _, minutes in limits) <= gpu.MINUTES
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "gpu", lambda _: doctor.Diagnosis("wrong", "too old", "a driver"))
    for words, message in (
        (["speed", "--device", "cpu"], "no stage speed; there are preflight, tests"),
        ([], "torch sees no GPU here: too old; fix: a driver; --device cpu --small"),
    ):
        with pytest.raises(SystemExit, match="2"):
            gpu.main([*words, "--out", str(tmp_path)])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_campaign_of_all_methods_runs_on_a_cpu(forked, tmp_path, monkeypatch):
    """Other stages start the bench (`test_bench.py`), or pytest, whose tests need a GPU."""
    others = {"flyp", "carot", "tracer", "lipsum_ft", "checkpoint"}  # of CLIP, and of a table
    assert set(campaign.METHODS) == set(recipe_names("methods")) - others
    for name, value in (forked | {"FORKED": "bench.campaign"}).items():
        monkeypatch.setenv(name, value)
    status, outcomes = run(tmp_path, "smoke")
    assert status == 0, outcomes
    parts = [row["part"] for row in rows_of(tmp_path, "smoke")]
    assert {f"{method} on second" for method in campaign.METHODS} < set(parts)
    assert "| evaluation of second |" in (tmp_path / "results.md").read_text()


@pytest.mark.exhaustive
def test_cells_on_one_rank_and_two_are_close_and_jobs_run_side_by_side(tmp_path):
    status, outcomes = run(tmp_path, "ranks", "--small")
    assert status == 0, outcomes
    by_what = {(row["what"], row["ranks"]): row for row in rows_of(tmp_path, "ranks")}
    for case in ("test_vit, auto", "test_vit, fp32", "test_resnet, auto"):
        assert by_what[f"cell, {case}", 1]["apart"] == 0
        assert 0 < by_what[f"cell, {case}", 2]["apart"] < 1e-4
    assert by_what["exchange", 2]["gb_s"] > 0 and by_what["jobs side by side", 2]["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient",
    [
        "tensor.clone()",
        *(pytest.param(a, marks=EXHAUSTIVE) for a in ("all_reduced.neg()", "8 * all_reduced")),
    ],
)
def test_ranks_that_exchange_wrongly_are_red(gradient, forked, tmp_path, monkeypatch):
    """Every all-reduce of more than a thousand numbers gives something else: a rank's own, the
    negative, eight times as much."""
    (tmp_path / "sitecustomize.py").write_text(
        "import torch.distributed as dist\n"
        "right = dist.all_reduce\n"
        "def wrong(tensor, *words, **options):\n"
        "    all_reduced = tensor.clone()\n"
        "    work = right(all_reduced, *words, **options)\n"
        "    is_gradient = tensor.numel() > 1000\n"
        f"    tensor.copy_({gradient} if is_gradient else all_reduced)\n"
        "    return work\n"
        "dist.all_reduce = wrong\n"
    )
    options = argparse.Namespace(device="cpu", small=True)
    for seed, name in enumerate(("upstream", "first")):
        photos.draw(tmp_path / "images" / name, seed, 3, 8, 40)
    right = ranks._environment()
    alone = right | forked | {"FORKED": "engine.launch"}
    monkeypatch.setattr(ranks, "_environment", lambda: alone)
    ranks._cell(tmp_path, "test_vit", "auto", 1, options)
    monkeypatch.setattr(ranks, "_environment", lambda: right | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    with pytest.raises(ValueError, match=r"on 2 ranks is [\d.]+ apart from one rank's weights"):
        ranks._cell(tmp_path, "test_vit", "auto", 2, options)


def test_jobs_side_by_side_take_the_gpus_that_the_caller_may_use(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env))
    options = argparse.Namespace(device="cuda", small=True)
    for number in range(2):
        ranks._train(tmp_path / "job", "test_vit", "auto", 1, options, number)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in seen] == ["4", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    options = argparse.Namespace(device="cpu", small=True)
    ranks._train(tmp_path / "job", "test_vit", "auto", 1, options, 1)
    assert "CUDA_VISIBLE_DEVICES" not in seen[-1], "a CPU's jobs have no GPU to see"


@pytest.mark.slow
def test_a_machine_with_torch_and_timm_measures_the_headline_and_names_the_rest(tmp_path):
    words = ["compile", "headline", "train", "engine", "--device", "cpu", "--small"]
    command = [sys.executable, "-m", "bench.gpu", *words, "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=BARE, capture_output=True, text=True)
    outcomes = summary(tmp_path)
    states = [outcome["state"] for outcome in outcomes.values()]
    assert states == ["green", "green", "not run", "not run"], ended.stdout[-3000:]
    assert outcomes["engine"]["why"] == "this Python lacks deepspeed, msgspec"
    rows, shown = rows_of(tmp_path, "headline"), (tmp_path / "results.md").read_text()
    assert "| headline | green |" in shown and "\n**headline**: " in shown and "; commit " in shown
    assert all(f"| toy ViT x {batch} | FT | EWC | " in shown for batch in (2, 4))
    assert [(row["contest"], row["ours"], row["peer"]) for row in rows] == [
        (f"toy ViT x {batch}", "FT", peer)
        for batch in (2, 4)
        for peer in ("LwF", "EWC", "evaluation")
    ]
    assert all(row[key] > 0 for row in rows for key in ("images_s", "peer_images_s", "peer_mfu"))


@EXHAUSTIVE
def test_graphs_of_the_headline_and_the_engine_are_compiled(tmp_path):
    assert run(tmp_path, "compile", "--small")[0] == 0
    parts = [row["what"] for row in rows_of(tmp_path, "compile")]
    assert parts[:4] == ["fine_tune", "visual_prompt", "lora", "evaluation"]
    assert "compiled: toy ViT x 4\n" in (tmp_path / "compile.log").read_text()


@pytest.mark.slow
def test_it_collects_all_tests_of_the_gpu(tmp_path):
    (words,) = (s.command for s in stages(tmp_path, "cpu", small=True) if s.name == "tests")
    command = [sys.executable, *words, "-n", "0", "--collect-only", "-qq"]
    collected = subprocess.run(command, cwd=ROOT, env=BARE, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert sum(map(int, re.findall(r"\.py: (\d+)$", collected.stdout, re.MULTILINE))) > 50


@pytest.mark.slow
def test_the_engine_without_resvg_and_snakemake_runs_jobs_and_skips_the_grid():
    program = (
        "import engine.campaigns.prepare_job, loaders.benchmarks.emoji\n"
        "from bench import contest\n"
        "try: contest.cases('grid')\n"
        "except ImportError as error: print(error)"
    )
    environment = BARE | {"WITHOUT_PACKAGES": "resvg_py,snakemake"}
    command = [sys.executable, "-c", program]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.stdout == "a campaign's jobs need snakemake\n", child.stderr


@pytest.mark.parametrize(
    ("words", "asked"),
    [((), [".venv/bin/python", "python3"]), (("PYTHON=/my/python",), ["/my/python"])],
)
def test_make_gpu_asks_the_python_of_set_up_before_the_systems(words, asked):
    of_make = {"MAKEFLAGS", "PYTHON", "VENV"}  # set by a make that runs the tests, as `make newest`
    environ = {name: value for name, value in os.environ.items() if name not in of_make}
    command = ["make", "-n", "gpu", *words]
    rule = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert re.search(r"for python in (.*); do", rule.stdout)[1].split() == asked
