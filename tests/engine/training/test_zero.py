"""`train.zero=1`: each rank keeps a part of the optimizer's state, and weights keep their bits."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers import rank_worker
from helpers.grids import Grid, distance, same
from helpers.interruptions import EVERY_STEP, interrupted, resumed

ADAMW = ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.eps=1e-3", "train.clip=0.1"]
EWC = ["method=ewc", "method.fisher_images=5", "method.fisher_scale=mean"]
CELLS = [
    ["method=spd", "train.clip=0.1"],  # SGD; its hooks read gradients and change weights
    [*EWC, "method.lam=2", *ADAMW],
    [*EWC, "method.lam=2000"],  # SGD, which limits the pull
    # Groups with their own rates.
    ["method=strong_fine_tune", "method.layer_decay=0.5", "train.accumulation=3", *ADAMW],
    ["optimizer.name=sgd", "optimizer.momentum=0"],  # an optimizer without state
    ["method=visual_prompt", *ADAMW],  # a single tensor: the second rank steps none
]
ZERO = "train.zero=1"


@pytest.fixture(scope="module")
def two_ranks(
    grid: Grid, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Any], dict[str, Grid]]:
    """What became of jobs on two ranks, and the folders of these. Interruptions are after 4 steps
    of 6; the last job measures the largest part of a rank."""
    folder = tmp_path_factory.mktemp("two")
    names = ("plain", "zero", "resumed", "one to two", "two to one")
    places = {name: grid.elsewhere(folder / name, grid.builder()) for name in names}
    jobs = []
    for words in CELLS:
        interrupted(places["one to two"].builder(EVERY_STEP, *words), 4)
        jobs += [
            {"runs": places[name].runs, "words": [*words, *more], **how}
            for name, more, how in (
                ("plain", [], {}),
                ("zero", [ZERO], {}),
                ("two to one", [ZERO], {"step": 4, "how": "stop"}),
                ("resumed", [ZERO], {"after": places["two to one"].runs}),
                ("one to two", [ZERO], {}),
            )
        ]
    process, results = rank_worker.run(grid, folder, [*jobs, {"how": "part"}], ranks=2)
    assert process.returncode == 0, process.stderr[-3000:]
    return results, places


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CELLS)), ids=[" ".join(words) for words in CELLS])
def test_weights_are_those_without_zero(two_ranks, number):
    """Bit for bit on as many ranks; up to rounding where a run without zero is resumed with it on
    another number of ranks, or the other way round."""
    results, places = two_ranks
    plain, zero, _, again, from_one = results[5 * number : 5 * number + 5]
    expected = weights_and_history(plain[0])
    assert zero[1] == [1, 2, 3, 4, 5, 6] and again[1] == from_one[1] == [5, 6]
    for cell in (zero, again):
        assert Path(cell[0]).name == Path(plain[0]).name, "zero is part of the cell's name"
        tensors, history = weights_and_history(cell[0])
        assert same(tensors, expected[0]) and history == pytest.approx(expected[1], rel=1e-12)
    to_one, steps = resumed(places["two to one"], *CELLS[number])
    assert steps == [5, 6]
    for folder in (from_one[0], to_one.artifact.folder):
        tensors, history = weights_and_history(folder)
        assert distance(tensors, expected[0]) < 1e-5
        assert history == pytest.approx(expected[1], rel=1e-3)


@pytest.mark.slow
def test_a_rank_keeps_its_part_of_moments_anchors_and_fisher(two_ranks):
    ((largest,),) = two_ranks[0][-1:]
    assert 0.5 <= largest < 0.55


def weights_and_history(folder: str | Path) -> tuple[dict[str, Any], dict[str, float]]:
    """A cell's weights, and the last entry of its history."""
    state = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        state |= load_file(path)
    return state, json.loads((Path(folder) / "history.json").read_text())[-1]
