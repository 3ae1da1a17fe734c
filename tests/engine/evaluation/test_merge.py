"""Mixes of cells: WiSE-FT and soups, and the laws that they must keep."""

import functools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from engine.cells.build import Builder
from engine.evaluation import bank, passes
from engine.methods import soup
from engine.store import cells
from helpers.evaluations import State, average, by_timm, check_predictions
from helpers.grids import CONV, Grid, same, weights


def mixed(builder: Builder, mix: cells.Mix) -> State:
    """The state dict that a mix is evaluated with."""
    parents = {name: bank.stored_cell(builder.store, name) for name in mix}
    (state,) = bank.mixed([mix], parents, builder.device)
    return state


# Of state dicts.
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7, check_dtype=False)


def predictions(builder: Builder, mix: cells.Mix) -> Path:
    passes.evaluate(builder, [mix], ["tinted"], "all")
    return passes.predicted(builder, mix, "tinted", "all")


def test_wise_ft_is_the_pre_trained_model_at_0_and_fine_tuning_at_1_bit_for_bit(grid):
    builder, cell = grid.build("method=wise_ft")
    alphas = [entry.alpha for entry in cell.entries]
    assert alphas == [i / 10 for i in range(11)]
    assert [e.alpha for e in cell.entries if e.headline] == [0.5]
    tuned = builder.cell("fine_tune")
    tables = []
    for alpha, end in ((0.0, builder.base), (1.0, tuned)):
        mix = next(entry.mix for entry in cell.entries if entry.alpha == alpha)
        assert set(mix) == {builder.base.name, tuned.name}
        assert same(mixed(builder, mix), weights(end))
        assert predictions(builder, mix) == predictions(builder, {end.name: 1.0})
        tables.append(pq.read_table(predictions(builder, mix)))
    assert not tables[0].equals(tables[1])
    _, released = grid.build("method=wise_ft", "method.variant=released")
    assert [(entry.alpha, entry.headline) for entry in released.entries] == [(0.5, True)]


@pytest.mark.parametrize("arch", ["test_vit", CONV])
def test_wise_ft_between_the_ends_is_the_weighted_mean_of_the_two(grid, arch):
    words = (f"model.arch={arch}", "train.freeze_batchnorm=false", "train.batch_size=5")
    builder, cell = grid.build(*words, "method=wise_ft", "method.alphas=[0.3]")
    ends = [builder.base.state(), weights(builder.cell("fine_tune"))]
    assert [(entry.alpha, entry.headline) for entry in cell.entries] == [(0.3, False), (0.5, True)]
    for entry in cell.entries:
        expected = average(ends, [1 - entry.alpha, entry.alpha])
        if arch == CONV:  # of integers, there is no mean
            counters = [n for n in expected if n.endswith("num_batches_tracked")]
            assert counters and ends[0][counters[0]] != ends[1][counters[0]]
            first = bank.stored_cell(builder.store, min(entry.mix)).state()
            expected |= {name: first[name] for name in counters}
        actual = mixed(builder, entry.mix)
        close(actual, expected)
        table = pq.read_table(predictions(builder, entry.mix))
        check_predictions(table, *by_timm(grid, "tinted", actual, arch=arch))


@pytest.mark.parametrize("member", ["pretrained", "fine_tune", "visual_prompt"])
@pytest.mark.parametrize("select", ["uniform", "greedy"])
def test_a_soup_of_one_model_is_that_model(grid, member, select):
    builder, cell = grid.build(
        "method=soup", f"method.select={select}", f"method.members=[{member}]"
    )
    alone = builder.base if member == "pretrained" else builder.cell(member)
    (entry,) = cell.entries
    assert entry.mix == {alone.name: 1.0}
    assert predictions(builder, entry.mix) == predictions(builder, {alone.name: 1.0})


@pytest.mark.parametrize(
    "members",
    [
        ["pretrained", "fine_tune", "ewc", "lwf"],
        ["pretrained", "fine_tune", "pretrained", "fine_tune"],
    ],
)
def test_a_uniform_soup_is_the_mean_of_its_members(grid, members):
    builder, cell = grid.build("method=soup", f"method.members=[{','.join(members)}]")
    (entry,) = cell.entries
    cells = [builder.base if name == "pretrained" else builder.cell(name) for name in members]
    assert entry.mix == dict.fromkeys({c.name for c in cells}, 1 / len(set(members)))
    close(mixed(builder, entry.mix), average([weights(c) for c in cells], [0.25] * 4))


def test_prompts_and_models_of_different_architecture_have_no_mean(grid: Grid):
    with pytest.raises(ValueError, match=r"visual_prompt-outline-\w+ has an input prompt"):
        grid.build("method=soup", "method.members=[pretrained,visual_prompt]")
    vit, conv = grid.builder(), grid.builder(f"model.arch={CONV}")
    parents = {"vit": vit.base, "conv": conv.base}
    with pytest.raises(ValueError, match="only models of one architecture can be averaged"):
        bank.mixed([soup.uniform(["vit", "conv"])], parents, vit.device)
