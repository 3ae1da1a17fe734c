"""The bench times by turns what gives the same, and keeps what it has measured."""

import importlib
import json
import math
import pkgutil
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import bench
from bench import __main__ as command
from bench import contest, headline, transport, vit
from bench.contest import Contest, Entrant, Scale, interleave, processor_seconds

CPU = torch.device("cpu")
OURS, PEER = Entrant("ours", int), Entrant("theirs", int)
OF_EACH_DAY = ("loader", "train", "evaluation", "kernels")
BUSY = [sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.3: pass"]


@pytest.fixture
def replaced(monkeypatch):
    """Contests of cases, by name, in place of the real ones."""
    every: dict[str, list[Contest]] = {}
    monkeypatch.setattr(contest, "cases", lambda name: lambda device, scale: iter(every[name]))
    return every


def run(folder, *words: str) -> int:
    return command.main([*words, "--quick", "--seconds", "0", "--out", str(folder)])


def stored(folder, name: str) -> dict:
    return json.loads((folder / f"{name}-cpu.json").read_text())


def test_runs_are_interleaved_and_every_other_round_goes_backwards():
    order: list[str] = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    times = interleave(runs, CPU, seconds=0, least=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(entrant) for entrant in times] == [3, 3]
    assert len(interleave([int], CPU, seconds=60, most=7)[0]) == 7


def test_processor_time_holds_that_of_ended_processes():
    before, busy = processor_seconds(), [lambda: subprocess.run(BUSY, check=True)]
    (times,) = interleave(busy, CPU, seconds=0, least=1, processor_time=True, warm=False)
    assert len(times) == 1 and times[0] >= 300
    assert 0.3 <= processor_seconds() - before < 0.6  # it ran once: there was no warm-up


def test_a_row_has_the_median_of_paired_ratios_and_the_rates(monkeypatch):
    times = [[10.0, 20.0, 30.0], [20.0, 20.0, 20.0]]
    monkeypatch.setattr(contest, "rounds", lambda *_, **__: iter([times]))
    ours = Entrant("ours", int, images=8, least_ms=5, facts={"peak_mb": 7})
    peer = Entrant("theirs", int, bytes=1e9)
    (row,) = contest.hold(Contest("c", ours, (peer,)), CPU, seconds=0)
    assert row == {
        "contest": "c", "ours": "ours", "peer": "theirs", "ms": 20, "peer_ms": 20, "ratio": 1,
        "low": 0.75, "high": 1.25, "rounds": 3, "images_s": 400, "mfu": 0.25, "peak_mb": 7,
        "peer_gb_s": 50,
    }  # fmt: skip


def test_a_peer_that_lacks_memory_is_a_row_and_stops_no_other():
    def lacks() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 40 GB")

    peers = (Entrant("large", lacks), PEER)
    *_, first, second = contest.hold(Contest("c", OURS, peers), CPU, seconds=0)
    assert first["failed"] == "CUDA out of memory." and "ratio" not in first and first["ms"] >= 0
    assert second["ratio"] > 0 and "failed" not in second


def test_rows_of_the_first_round_are_kept_until_those_of_all(replaced, tmp_path):
    times: list[int] = []

    def breaks_in_the_second_round() -> None:
        times.append(1)
        if len(times) == 3:  # the first is not timed
            (row,) = stored(tmp_path, "kernels")["rows"]
            assert (row["contest"], row["rounds"]) == ("long", 1)
            raise ValueError("out of time")

    replaced["kernels"] = [Contest("long", Entrant("ours", breaks_in_the_second_round), (PEER,))]
    assert run(tmp_path, "kernels") == 1
    assert [row["rounds"] for row in stored(tmp_path, "kernels")["rows"]] == [1]
    replaced["loader"] = [Contest(name, OURS, (PEER,)) for name in ("first", "second")]
    assert run(tmp_path, "loader") == 0
    rows = stored(tmp_path, "loader")["rows"]
    assert [(row["contest"], row["rounds"]) for row in rows] == [("first", 5), ("second", 5)]


def test_what_gives_another_result_is_not_timed_and_stops_no_other_case(replaced, tmp_path, capsys):
    def check() -> None:
        raise AssertionError("off by 3")

    ran: list[str] = []
    wrong = Contest("wrong", Entrant("ours", lambda: ran.append("ours")), (PEER,), check)
    replaced["kernels"] = [Contest("sound", OURS, (PEER,)), wrong]
    replaced["loader"] = [Contest("next", OURS, (PEER,))]
    assert run(tmp_path, "kernels", "loader") == 1
    assert "rows before it are kept: AssertionError: off by 3" in capsys.readouterr().out
    failed = stored(tmp_path, "kernels")
    assert [row["contest"] for row in failed["rows"]] == ["sound"] and not ran
    assert failed["message"] == "AssertionError: off by 3"
    assert {"device", "cores", "threads", "load", "versions", "commit"} < failed["machine"].keys()
    assert [row["contest"] for row in stored(tmp_path, "loader")["rows"]] == ["next"]


def test_peers_and_cases_without_their_packages_are_named(tmp_path, capsys, monkeypatch):
    def contests(device, scale):
        other = contest.tried("other", lambda: importlib.import_module("no_such_package"))
        yield Contest("c", OURS, (PEER, *other))
        raise ModuleNotFoundError("a campaign's jobs need snakemake")

    monkeypatch.setattr(contest, "cases", lambda name: contests)
    assert run(tmp_path, "grid") == 0
    printed = capsys.readouterr().out
    monkeypatch.setattr(contest, "cases", lambda name: importlib.import_module("no_such_package"))
    assert run(tmp_path, "grid") == 1, "nothing was measured"
    assert "peer skipped: other (No module named 'no_such_package')" in printed
    assert "skipped: a campaign's jobs need snakemake" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [(["speed"], "no case speed; there are headline,"), (["--device", "cuda"], "sees no GPU here")],
)
def test_unknown_cases_and_missing_gpus_are_named(words, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert message in capsys.readouterr().err


def test_every_case_is_listed():
    modules = {info.name for info in pkgutil.iter_modules(bench.__path__)} - {"__main__"}
    cases = {m for m in modules if hasattr(importlib.import_module(f"bench.{m}"), "contests")}
    assert cases == set(contest.CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_EACH_DAY else pytest.mark.exhaustive)
        for name in contest.CASES
        if name not in ("headline", "grid")  # `test_gpu_stages.py`, `test_grid.py`
    ],
)
def test_contests_run(name):
    for current in contest.cases(name)(CPU, Scale(quick=True)):
        for row in contest.hold(current, CPU, seconds=0):
            assert row["ratio"] > 0


@pytest.mark.slow
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    kernels = importlib.import_module("bench.kernels")
    right = kernels.distill_loss
    monkeypatch.setattr(kernels, "distill_loss", lambda *a, **k: 1.001 * right(*a, **k))
    with pytest.raises(AssertionError):
        kernels._distill(8, 100, CPU, compiles=False).check()


def test_every_pass_of_a_compiled_row_runs_a_graph(monkeypatch):
    """With a backend that counts graphs and their runs. Beyond Dynamo's limit, nothing is timed."""
    graphs, runs = [], []

    def backend(module, _):
        graphs.append(module)

        def run(*inputs):
            runs.append(module)
            return module(*inputs)

        return run

    bf16 = lambda device: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    monkeypatch.setattr(vit, "autocast", bf16)  # as on a GPU
    model = vit.build(CPU, quick=True)
    for form in (form for form, dynamic in headline.FORMS.items() if dynamic is not None):
        for current in headline.of_form(model, form, (2, 4), backend):
            for entrant in (current.ours, *current.peers):
                runs.clear()
                entrant.run()
                assert len(runs) == 1, f"{current.name}, {entrant.name}: a pass ran eager"
            assert current.ours.facts["graphs"] >= 1
    assert len(graphs) == 2 + 2 * 2 + 2
    one_size = headline.of_form(model, ", compiled for one size", (2, 4), backend)
    too_many = pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit)
    with torch._dynamo.config.patch(recompile_limit=1), too_many:
        for current in one_size:
            current.ours.run()


def test_the_kernels_of_a_run_are_listed_with_the_idle_share():
    a = torch.randn(64, 64)
    table = headline.kernels_of(lambda: torch.mm(a, a), CPU, runs=2)
    assert "aten::mm" in table and re.search(r"idle: \d+% of [\d.e-]+ ms$", table)


class DenseSinkhorn:
    """flash-sinkhorn's interface on a CPU, as its documentation states it: symmetric updates of
    uniform measures at one eps, of cost lambda_x |x - y|^2 + lambda_y W[label x, label y]."""

    bias = 1.0

    def __init__(self, *, eps, n_iters, use_epsilon_scaling, label_cost_matrix, lambda_y):
        assert not use_epsilon_scaling
        self.eps, self.count, self.table = eps, n_iters, lambda_y * label_cost_matrix.double()

    def __call__(self, x, y, *, label_x, label_y):
        cost = torch.cdist(x.double(), y.double()).square() + self.table[label_x][:, label_y]
        f, g = cost.new_zeros(len(x)), cost.new_zeros(len(y))
        for _ in range(self.count):
            next_f = -self.eps * (((g - cost) / self.eps).logsumexp(1) - math.log(len(y)))
            next_g = -self.eps * (((f - cost.T) / self.eps).logsumexp(1) - math.log(len(x)))
            f, g = (f + next_f) / 2, (g + next_g) / 2
        return self.bias * (f.mean() + g.mean())


def test_flash_sinkhorn_is_timed_only_where_its_value_is_ours(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_sinkhorn", SimpleNamespace(SamplesLoss=DenseSinkhorn))
    problem = transport.Problem(60, 4, CPU, d=8)
    entrant = transport.flash(problem, 50)
    assert entrant.name.startswith("flash-sinkhorn, ")
    assert float(entrant.run()) == pytest.approx(problem.solve(), rel=transport.TF32_ERROR)
    monkeypatch.setattr(DenseSinkhorn, "bias", 0.98)
    contest.SKIPPED.clear()
    assert contest.tried("flash-sinkhorn", lambda: transport.flash(problem, 50)) == []
    assert "its value differs from ours by -2.1% after 400" in contest.SKIPPED[0]
