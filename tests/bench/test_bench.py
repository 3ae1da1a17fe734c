"""The bench refuses what it should, predicts what it says, and its gates are green."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import bench
import kernels
from bench import __main__ as command
from bench import contest, peers, report, roofline
from bench.contest import Contest, Entrant, Row
from bench.roofline import Roofline, Work
from bench.timing import interleave, peak_bytes
from engine.methods.objectives import Penalty
from kernels.distill import distill_loss

CPU = torch.device("cpu")
ROOFLINE = Roofline(copy_gb_s=10.0, matmul_gflop_s=100.0)
OF_THE_ENGINE = ("loader", "train", "evaluation", "grid")  # kernels have tests of their own
CASES = [
    pytest.param(name, marks=() if name in OF_THE_ENGINE else pytest.mark.exhaustive)
    for name in contest.CASES
]


def row(**change) -> Row:
    values = {
        "contest": "EWC-AdamW 21M", "subject": "adamw_ewc_", "peer": "torch AdamW, fused",
        "subject_ms": 12.5, "peer_ms": 10.0, "predicted": 1.29, "measured": 1.25, "low": 1.2,
        "high": 1.3, "of_minima": 1.24, "target": 1.35, "roofline": 0.8, "rounds": 5,
    }  # fmt: skip
    return Row(**values | change)


def fake(ran: list[str]) -> SimpleNamespace:
    def contests(device, scale):
        runs = [Entrant(name, lambda name=name: ran.append(name), Work(1.0)) for name in "ab"]
        yield Contest("one", runs[0], (runs[1],))

    return SimpleNamespace(KERNELS=(), gate=lambda device: None, contests=contests)


@pytest.fixture
def cases(monkeypatch, tmp_path):
    """Cases by name that replace the real ones; results go to a temporary folder."""
    replaced: dict[str, SimpleNamespace] = {}
    monkeypatch.setattr(contest, "load", lambda name: replaced[name])
    monkeypatch.setattr(report, "ROOT", tmp_path)
    quick = roofline.measure(CPU, quick=True)
    monkeypatch.setattr(roofline, "measure", lambda device, short=False: quick)
    return replaced


def test_runs_are_interleaved_and_every_other_round_goes_backwards():
    order: list[str] = []
    times = interleave(
        [lambda: order.append("a"), lambda: order.append("b")], CPU, seconds=0, least=3
    )
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(entrant) for entrant in times] == [3, 3]
    assert len(interleave([int], CPU, seconds=60, most=7)[0]) == 7


def test_predictions_are_bytes_and_flops_over_the_measured_rates():
    assert ROOFLINE.milliseconds(Work(bytes=10e6, flops=100e6)) == pytest.approx(2.0)
    subject = Entrant("ours", int, Work(36))
    peer = Entrant("theirs", int, Work(28), target=1.35)
    (row,) = contest.hold(Contest("c", subject, (peer,), rounds=3), ROOFLINE, CPU, seconds=0)
    assert row.predicted == pytest.approx(36 / 28) and row.rounds == 3
    assert row.low <= row.measured <= row.high and row.target == 1.35
    unknown = Entrant("theirs", int)
    (row,) = contest.hold(Contest("c", subject, (unknown,), rounds=3), ROOFLINE, CPU, seconds=0)
    assert row.predicted is None and " - " in report.table([row], heads=False)


def test_the_time_of_a_part_is_scaled_to_the_whole(monkeypatch):
    monkeypatch.setattr(contest, "interleave", lambda *_, **__: [[100.0, 100.0], [50.0, 50.0]])
    peer = Entrant("theirs, 1 of 10 rows, scaled", int, Work(28), share=0.1)
    scaled = Contest("c", Entrant("ours", int, Work(36)), (peer,))
    (row,) = contest.hold(scaled, ROOFLINE, CPU, seconds=0)
    assert (row.subject_ms, row.peer_ms) == (100, pytest.approx(500))
    assert row.measured == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e3),
        ("NVIDIA A100-SXM4-80GB", 312e3),
        ("NVIDIA H200", 989e3),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("", None),
    ],
)
def test_data_sheets_are_of_whole_cards_by_their_exact_name(name, rate):
    assert roofline.sheet(name) == rate


def test_a_load_gives_rates_to_rows_table_and_json(cases, capsys, tmp_path):
    """8 images of 50 MFLOP in 4 ms: 2000 a second, 100 of the machine's 400 GFLOP/s."""
    load = contest.Load(images=8, flops=8 * 50e6, peak_bytes=3e6)
    fast = Roofline(copy_gb_s=10.0, matmul_gflop_s=800.0, sheet_gflop_s=400.0)
    assert load.rates(4.0, fast) == {"images_s": 2000.0, "mfu": 0.25, "peak_mb": 3.0}
    assert load.rates(4.0, ROOFLINE)["mfu"] == 1.0  # of what was measured, without a data sheet
    assert contest.Load(8).rates(4.0, fast) == {"images_s": 2000.0}

    cases["fisher"] = fake([])
    loaded = Entrant("a", lambda: None, Work(1.0), load=load)
    plain = Entrant("b", lambda: None, Work(1.0))
    cases["fisher"].contests = lambda device, scale: iter([Contest("one", loaded, (plain,))])
    assert command.main(["fisher", "--seconds", "0"]) == 0
    table = capsys.readouterr().out.splitlines()
    heads, (entrant,) = (
        [line.split() for line in table if "images/s" in line],
        [line.split() for line in table if line.startswith("one") and line.endswith(" 3")],
    )
    assert heads == [["contest", "entrant", "images/s", "MFU", "peak", "MB"]]
    assert entrant[:2] == ["one", "a"] and len(entrant) == 5
    (file,) = (tmp_path / "bench" / "results").iterdir()
    (row,) = json.loads(file.read_text())["rows"]
    assert row["rates"].keys() == {"a"} and row["rates"]["a"]["peak_mb"] == 3.0


def test_rows_without_a_load_have_no_rates():
    assert report.rates([row()]) == "" and row().rates == {}


def test_peak_memory_of_tensors():
    """Two of three megabytes at once, one freed before the run and one after it."""

    def build():
        torch.empty(1_000_000, dtype=torch.uint8)  # freed at once
        tensor = torch.empty(1_000_000, dtype=torch.uint8)

        def run():
            torch.empty(1_000_000, dtype=torch.uint8)
            return tensor

        return run

    run, peak = peak_bytes(build, CPU)
    assert 2_000_000 <= peak < 2_010_000 and run() is not None


@pytest.mark.parametrize(
    ("measured", "target", "verdict"),
    [(1.35, 1.35, "met"), (1.36, 1.35, "MISSED"), (9.0, None, "-")],
)
def test_verdicts(measured, target, verdict):
    assert row(measured=measured, target=target).verdict == verdict


def test_the_table_fits_a_hundred_columns():
    long = row(contest="x" * 50, peer="y" * 50, subject_ms=12345.6, peer_ms=12345.6)
    lines = report.table([row(), long]).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].split()[-4:] == ["1.29", "1.25", "1.35", "met"]
    assert "12.5 / 10" in lines[1]


def test_a_red_gate_refuses_the_timing_and_fails_the_run(cases, capsys, tmp_path):
    ran: list[str] = []
    cases["fisher"] = fake(ran)

    def red(device):
        raise AssertionError("off by 3")

    cases["fisher"].gate = red
    assert command.main(["fisher", "--quick"]) == 1
    assert "NOT TIMED, its gate is red: off by 3" in capsys.readouterr().out
    assert not ran and not list(tmp_path.iterdir())
    assert command.main(["fisher"]) == 1
    entry = json.loads((tmp_path / "bench" / "results" / "fisher-cpu.json").read_text())
    assert (entry["gate"], entry["message"], entry["rows"]) == ("red", "off by 3", [])


def test_a_gate_that_cannot_run_is_red_and_the_next_case_runs(cases, capsys):
    cases["fisher"], cases["distill"] = fake([]), fake(ran := [])

    def broken(device):
        raise SyntaxError("a kernel does not compile")

    cases["fisher"].gate = broken
    assert command.main(["fisher", "distill", "--quick", "--seconds", "0"]) == 1
    assert "its gate is red: SyntaxError: a kernel does not" in capsys.readouterr().out and ran


def test_a_case_that_fails_keeps_its_rows_and_the_next_one_runs(cases, capsys, tmp_path):
    cases["fisher"], cases["distill"] = fake([]), fake([])
    first = cases["fisher"].contests

    def contests(device, scale):
        yield from first(device, scale)
        assert peers.tried("apex", lambda: 1 / 0) == []  # pyright: ignore[reportArgumentType]
        raise RuntimeError("nvcc is missing")

    cases["fisher"].contests = contests
    assert command.main(["fisher", "distill", "--seconds", "0"]) == 1
    assert "fisher FAILED, the rows before it are kept: RuntimeError: nvcc" in (
        capsys.readouterr().out
    )
    results = tmp_path / "bench" / "results"
    failed, well = (
        json.loads((results / f"{name}-cpu.json").read_text()) for name in ("fisher", "distill")
    )
    assert failed["message"] == "RuntimeError: nvcc is missing" and len(failed["rows"]) == 1
    assert "message" not in well and len(well["rows"]) == 1
    assert (failed["skipped"], well["skipped"]) == (["apex (division by zero)"], [])


def test_a_peer_that_cannot_run_is_skipped_by_name(capsys):
    def broken():
        raise RuntimeError("Error building extension\nfused_adam.so: no nvcc")

    assert peers.tried("FusedAdam", broken) == []
    assert capsys.readouterr().out == "peer skipped: FusedAdam (Error building extension)\n"
    assert [entrant.name for entrant in peers.tried("f", lambda: Entrant("f", int, Work(1.0)))] == [
        "f"
    ]
    assert peers.optional("no_such.package") is None
    assert capsys.readouterr().out.startswith("peer skipped: no_such.package (No module named")
    assert peers.optional("json") is json


def test_a_case_without_its_package_is_skipped_by_name(cases, capsys, monkeypatch):
    cases["distill"] = fake([])

    def load(name):
        if name == "fisher":
            raise ModuleNotFoundError("No module named 'timm'")
        return cases[name]

    monkeypatch.setattr(contest, "load", load)
    assert command.main(["fisher", "distill", "--quick", "--seconds", "0"]) == 0
    printed = capsys.readouterr().out
    assert "fisher\nskipped: No module named 'timm'" in printed and "one" in printed


def test_results_name_device_versions_and_commit(cases, tmp_path):
    cases["fisher"] = fake([])
    assert command.main(["fisher", "--seconds", "0"]) == 0
    (path,) = (tmp_path / "bench" / "results").iterdir()
    assert path.name == "fisher-cpu.json"
    results = json.loads(path.read_text())
    assert results["case"] == "fisher" and results["gate"] == "green" and len(results["rows"]) == 1
    assert {"device", "threads", "load", "commit", "when"} <= results["machine"].keys()
    assert results["machine"]["versions"]["torch"] == torch.__version__
    assert results["rows"][0]["rounds"] >= 5 and results["rows"][0]["verdict"] == "-"


def test_all_results_can_go_to_one_file(cases, tmp_path):
    cases["fisher"], cases["distill"] = fake([]), fake([])
    path = tmp_path / "all.json"
    arguments = ["fisher", "distill", "--seconds", "0", "--quick", "--json", str(path)]
    assert command.main(arguments) == 0
    assert list(json.loads(path.read_text())) == ["fisher", "distill"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_it_runs_where_only_torch_triton_timm_and_numpy_are_installed():
    """In a process that cannot import anything else: kernels load, cases run or are skipped."""
    program = """
import sys
absent = {"numba", "deepspeed", "ot", "geomloss", "ott", "jax", "scipy", "avalanche", "msgspec",
          "pyarrow", "snakemake", "ffcv", "resvg_py", "open_clip", "liger_kernel", "apex", "cv2"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in absent else find_spec(name)
import importlib, pkgutil, kernels
from bench.__main__ import main
for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
    if not module.name.endswith(".loops"):  # numba's, and asked for with it
        importlib.import_module(module.name)
from kernels import aot
assert list(aot.discover())
code = main(["--quick", "--seconds", "0"])
assert not absent & set(sys.modules), absent & set(sys.modules)
sys.exit(code)
"""
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=report.ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    for name in ("optimizer", "fisher", "distill", "interpolate"):
        assert f"\n{name}\ncontest" in child.stdout or f"\n{name}\npeer skipped" in child.stdout
    assert "skipped: No module named" in child.stdout  # evaluation needs the engine
    assert "peer skipped: avalanche" in child.stdout


def test_unknown_cases_and_missing_gpus_are_named(capsys):
    assert command.main(["speed"]) == 2
    assert "no case speed; there are optimizer," in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda"]) == 2
        assert "no GPU" in capsys.readouterr().out


def test_every_kernel_has_a_case():
    timed = {kernel for name in contest.CASES for kernel in contest.load(name).KERNELS}
    for info in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if hasattr(importlib.import_module(info.name), "specializations"):
            name = info.name.removeprefix("kernels.")
            assert name in timed, f"no bench case times {info.name}"


def test_every_case_is_listed():
    for info in pkgutil.iter_modules(bench.__path__):
        is_case = info.name != "__main__" and hasattr(
            importlib.import_module(f"bench.{info.name}"), "gate"
        )
        assert is_case == (info.name in contest.CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gates_are_green(name):
    contest.load(name).gate(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_contests_run(name):
    for held in contest.load(name).contests(CPU, contest.Scale(quick=True)):
        for each in contest.hold(held, ROOFLINE, CPU, seconds=0):
            assert each.measured > 0 and (each.predicted is None or each.predicted > 0)


def test_the_gpu_contests_of_transport_run_where_their_peers_are(monkeypatch):
    transport = contest.load("transport")
    problem = transport.Problem(60, 4, CPU)

    class SamplesLoss:
        def __init__(self, loss, *, label_cost_matrix, **options):
            self.table = label_cost_matrix

        def __call__(self, x, y, *, label_x, label_y):
            assert self.table.shape == (8, 8) and torch.equal(self.table, self.table.T)
            assert label_x.max() < 4 <= label_y.min() and label_y.max() < 8
            return torch.tensor(2.0)

    module = SimpleNamespace(SamplesLoss=SamplesLoss)
    monkeypatch.setattr(transport.peers, "optional", lambda _: module)
    (held,) = transport._debiased(problem)
    value = held.subject.run()
    assert value.converged and value.value > 0
    assert held.peers[0].name == f"flash-sinkhorn: off {abs(2 / value.value - 1):.0e}"
    solved = transport.transport(problem.cost(), eps=problem.eps)
    potential = transport.two_products(problem).solve(200)
    stored = transport.store(problem.cost())
    dual = transport.certify(stored, potential, problem.eps, torch.ones(60).double()).dual
    assert dual == pytest.approx(solved.value, rel=1e-3)


def test_a_gate_can_be_red(monkeypatch):
    distill = contest.load("distill")
    monkeypatch.setattr(
        distill, "distill_loss", lambda *a, **k: distill.reference.distill_loss(*a, **k) * 1.001
    )
    with pytest.raises(AssertionError):
        distill.gate(CPU)


def heavier(student, teacher, labels, weight=1.0, **options):
    """Where there is a teacher: a plain cross-entropy has none."""
    return distill_loss(student, teacher, labels, weight=1.1 * weight, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("engine.methods.ewc.Penalty", lambda lam, *rest: Penalty(1.1 * lam, *rest)),
        ("kernels.distill.distill_loss", heavier),
    ],
)
def test_the_gate_of_training_knows_every_methods_own_term(monkeypatch, name, wrong):
    monkeypatch.setattr(name, wrong)
    with pytest.raises(AssertionError, match="not close"):
        contest.load("train").gate(CPU)
