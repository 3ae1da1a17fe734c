"""Two ranks go on bit by bit after an interruption, also with `train.zero=1`, where each keeps a
part of the optimizer's state."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from engine.cost import estimate
from helpers import rank_worker
from helpers.grids import Grid, distance, same
from helpers.interruptions import EVERY_STEP, interrupted, resumed

ADAMW = ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.eps=1e-3", "train.clip=0.1"]
EWC = ["method=ewc", "method.fisher_images=5", "method.fisher_scale=mean"]
WITHOUT_ZERO = [*EWC[:2], "train.accumulation=3", *ADAMW[:3]]  # an unscaled Fisher, no clipping
CELLS = [
    ["method=spd", "train.clip=0.1"],  # SGD; its hooks read gradients and change weights
    [*EWC, "method.lam=2", *ADAMW],
    [*EWC, "method.lam=2000"],  # SGD, which limits the pull
    # Groups with their own rates.
    ["method=strong_fine_tune", "method.layer_decay=0.5", "train.accumulation=3", *ADAMW],
    ["optimizer.name=sgd", "optimizer.momentum=0"],  # an optimizer without state
    ["method=visual_prompt", *ADAMW],  # a single tensor: the second rank steps none
    WITHOUT_ZERO,
]


@pytest.fixture(scope="module")
def two_ranks(
    grid: Grid, forked: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], list[Any], dict[str, Grid]]:
    """Two ranks after their end, what became of their jobs, and the folders of these.

    Interruptions are after 4 steps of 6. The last jobs measure the largest part of a rank, find no
    room on the first rank, and get SIGTERM.
    """
    folder = tmp_path_factory.mktemp("two")
    names = ("plain", "zero", "resumed", "one to two", "two to one", "full", "signal")
    places = {name: grid.elsewhere(folder / name, grid.builder()) for name in names}
    jobs = []
    for words in CELLS:
        interrupted(places["one to two"].builder(EVERY_STEP, *words), 4)
        zero = [*words, *["train.zero=1"] * (words is not WITHOUT_ZERO)]
        jobs += [
            {"runs": places[name].runs, "words": given, **how}
            for name, given, how in (
                ("plain", words, {}),
                ("zero", zero, {}),
                ("two to one", zero, {"step": 4, "how": "stop"}),
                ("resumed", zero, {"after": places["two to one"].runs}),
                ("one to two", zero, {}),
            )
        ]
    jobs += [
        {"how": "path", "runs": places["plain"].runs, "words": []},
        {"how": "exchange", "runs": places["plain"].runs, "words": []},
        {"how": "part"},
        {"runs": places["full"].runs, "words": ["method=lwf"], "how": "full"},
        {"runs": places["signal"].runs, "words": WITHOUT_ZERO, "step": 2, "how": "term"},
    ]
    process, results = rank_worker.run(grid, folder, jobs, 2, forked)
    assert len(results) == len(jobs), process.stderr[-3000:]
    return process, results, places


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CELLS)), ids=[" ".join(words) for words in CELLS])
def test_weights_are_those_without_zero_and_interruption(two_ranks, number):
    """Bit for bit on as many ranks; up to rounding where a run is resumed on another number of
    ranks, with zero on two and without on one."""
    process, results, places = two_ranks
    words, rounding = CELLS[number], 1e-12 * (CELLS[number] is not WITHOUT_ZERO)
    plain, zero, _, again, from_one = results[5 * number : 5 * number + 5]
    expected, history = weights_and_history(plain[0])
    assert zero[1] == [1, 2, 3, 4, 5, 6] and again[1] == from_one[1] == [5, 6]
    assert process.stderr.count("of 1 ranks on 2") == len(CELLS)
    for cell in (zero, again):
        assert Path(cell[0]).name == Path(plain[0]).name, "zero is part of the cell's name"
        tensors, entries = weights_and_history(cell[0])
        assert same(tensors, expected)
        assert entries == [pytest.approx(entry, rel=rounding, abs=0) for entry in history]
    to_one, steps = resumed(places["two to one"], *words)
    assert steps == [5, 6]
    for folder in (from_one[0], to_one.artifact.folder):
        tensors, entries = weights_and_history(folder)
        assert distance(tensors, expected) < 1e-5
        assert entries == [pytest.approx(entry, rel=1e-3) for entry in history]


@pytest.mark.slow
def test_ranks_wait_for_a_file_whose_name_is_not_utf_8(two_ranks):
    assert two_ranks[1][-5] == [os.fsdecode(b"\xff")]


@pytest.mark.slow
def test_deepspeed_copies_all_gradients_twice_in_an_exchange(two_ranks):
    """As the plan counts: into one tensor and back, each read and written, and no scaling."""
    (written,) = two_ranks[1][-4]
    passes = {"aten::cat": 1, "c10d::allreduce_": 1, "aten::copy_": 1}
    assert written == pytest.approx(passes)
    assert estimate.EXCHANGE_BYTES == 2 * 2 * 4


@pytest.mark.slow
def test_a_rank_keeps_its_part_of_moments_anchors_and_fisher(two_ranks):
    (largest,) = two_ranks[1][-3]
    assert 0.5 <= largest < 0.55


@pytest.mark.slow
def test_all_ranks_end_if_the_first_has_no_room_for_features_or_a_snapshot(two_ranks):
    """At once: the next job finds both ranks where it begins."""
    for first, other in two_ranks[1][-2]:
        assert first.startswith("OSError: ") and "No space left on device" in first
        assert other == "OtherRankError: another rank failed; its message says why"


@pytest.mark.slow
def test_sigterm_to_the_last_rank_ends_all_after_the_same_step(two_ranks):
    """With the code for another attempt; `test_a_signal_stops_training...` has one rank."""
    process, (*_, (message,)), places = two_ranks
    assert message.startswith("a signal ended training after step 3; the same command")
    assert process.returncode == os.EX_TEMPFAIL == 75, process.stderr[-3000:]
    assert process.stderr.count(message) == 1 and process.stderr.endswith(f"{message}\n")
    assert resumed(places["signal"], *WITHOUT_ZERO)[1] == [4, 5, 6]


def weights_and_history(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Of a cell."""
    state = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        state |= load_file(path)
    return state, json.loads((Path(folder) / "history.json").read_text())
