"""The bench times by turns what gives the same, and keeps what it has measured."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest
import torch

import bench
from bench import __main__ as command
from bench import contest, report
from bench.contest import Contest, Entrant, Scale
from bench.report import Results
from bench.roofline import Roofline
from bench.timing import interleave

CPU = torch.device("cpu")
PEER = Entrant("theirs", int)
OF_THE_ENGINE = ("loader", "train", "evaluation")  # kernels have tests of their own
CASES = [
    pytest.param(name, marks=() if name in OF_THE_ENGINE else pytest.mark.exhaustive)
    for name in contest.CASES
    if name != "grid"
]


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


def test_a_row_has_the_median_of_paired_ratios_and_the_rates(monkeypatch):
    times = [[10.0, 20.0, 30.0], [20.0, 20.0, 20.0]]
    monkeypatch.setattr(contest, "interleave", lambda *_, **__: times)
    ours, peer = Entrant("ours", int, images=8), Entrant("theirs", int, bytes=1e9)
    (row,) = contest.hold(Contest("c", ours, (peer,)), CPU, seconds=0)
    assert row == {
        "contest": "c", "ours": "ours", "peer": "theirs", "ms": 20, "peer_ms": 20, "ratio": 1,
        "low": 0.75, "high": 1.25, "rounds": 3, "images_s": 400, "peer_gb_s": 50,
    }  # fmt: skip


def test_what_gives_another_result_is_not_timed(replaced, tmp_path, capsys):
    ran: list[str] = []

    def check() -> None:
        raise AssertionError("off by 3")

    replaced["kernels"] = [
        Contest("sound", Entrant("ours", int), (PEER,)),
        Contest("wrong", Entrant("ours", lambda: ran.append("ours")), (PEER,), check),
    ]
    replaced["loader"] = [Contest("next", Entrant("ours", int), (PEER,))]
    assert run(tmp_path, "kernels", "loader") == 1
    assert "FAILED, the rows before it are kept: AssertionError: off by 3" in (
        capsys.readouterr().out
    )
    failed = stored(tmp_path, "kernels")
    assert [row["contest"] for row in failed["rows"]] == ["sound"] and not ran
    assert failed["message"] == "AssertionError: off by 3"
    assert [row["contest"] for row in stored(tmp_path, "loader")["rows"]] == ["next"]


def test_peers_and_cases_without_their_packages_are_named(replaced, tmp_path, capsys, monkeypatch):
    def build() -> Entrant:
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]

        raise AssertionError("unreachable")

    def contests(device, scale):
        peers = (PEER, *contest.tried("other", build))
        yield Contest("c", Entrant("ours", int), peers)
        raise ModuleNotFoundError("a campaign's jobs need snakemake")

    monkeypatch.setattr(contest, "cases", lambda name: contests)
    assert run(tmp_path, "grid") == 0
    printed = capsys.readouterr().out
    assert "peer skipped: other (No module named 'no_such_package')" in printed
    assert "skipped: a campaign's jobs need snakemake" in printed


def test_rows_are_on_disk_as_soon_as_they_are_known(tmp_path):
    results = Results(tmp_path, "kernels", CPU)
    results.add({"contest": "c", "ratio": 0.123456})
    content = stored(tmp_path, "kernels")
    assert content["rows"] == [{"contest": "c", "ratio": 0.1235}]
    assert {"device", "cores", "threads", "load", "versions", "commit"} < content["machine"].keys()


def test_markdown_has_a_column_for_each_key():
    table = report.markdown([{"a": 1, "b": 0.12345}, {"a": 2, "c": "x"}])
    assert table.splitlines() == [
        "| a | b | c |", "| --- | --- | --- |", "| 1 | 0.123 | - |", "| 2 | - | x |"
    ]  # fmt: skip


def test_mfu_is_of_the_data_sheet_or_else_of_what_was_measured():
    """400 MFLOP in 4 ms are 100 GFLOP/s."""
    assert Roofline(10.0, 800.0, 400.0).mfu(400e6, 4.0) == pytest.approx(0.25)
    assert Roofline(10.0, 200.0).mfu(400e6, 4.0) == pytest.approx(0.5)


def test_unknown_cases_and_missing_gpus_are_named(capsys):
    assert command.main(["speed"]) == 2
    assert "no case speed; there are kernels," in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda"]) == 2
        assert "no GPU" in capsys.readouterr().out


def test_every_case_is_listed():
    modules = {info.name for info in pkgutil.iter_modules(bench.__path__)} - {"__main__"}
    cases = {m for m in modules if hasattr(importlib.import_module(f"bench.{m}"), "contests")}
    assert cases == set(contest.CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
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
