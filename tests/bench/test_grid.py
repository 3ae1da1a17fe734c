"""The whole grid of `python -m bench grid`, by the engine and by the plain script."""

import pytest
import torch

from bench import grid, plain_grid
from engine import cli
from helpers import campaigns, grids

rank = grids.grid


def in_process(command) -> None:
    """Run a command of the plain script here, without the seconds that a process takes to start."""
    threads = torch.get_num_threads()
    try:
        plain_grid.main(command[2:])
    finally:
        torch.set_num_threads(threads)


def campaign_in_process(command) -> None:
    with pytest.MonkeyPatch.context() as patch:
        campaigns.in_this_process(patch)
        assert cli.main(command[2:]) == 0


def test_tables_agree_up_to_an_image_of_the_pre_trained_model_and_points_of_others():
    small, large = {"upstream": 50, "one": 50}, {"upstream": 200, "one": 500}
    table = {("pretrained", "", str(number)): 50.0 for number in range(100)}
    key = ("pretrained", "", "0")
    grid.agree(table, table | {key: 52.0}, small)
    with pytest.raises(AssertionError, match=r"'pretrained', .* 50\.00 by the engine, 52\.00"):
        grid.agree(table, table | {key: 52.0}, large)
    trained = {("ewc", *key[1:]): value for key, value in table.items()}
    grid.agree(trained, trained | {("ewc", *key[1:]): 54.0}, large)
    with pytest.raises(AssertionError, match=r"'ewc', .* 50\.00 by the engine, 56\.00"):
        grid.agree(trained, trained | {("ewc", *key[1:]): 56.0}, large)
    with pytest.raises(AssertionError, match=r"by 1\.50 points on average"):
        grid.agree(trained, dict.fromkeys(trained, 51.5), large)
    with pytest.raises(AssertionError, match="in one table alone"):
        grid.agree(table, {}, large)


@pytest.mark.slow
def test_both_programs_give_the_same_table(rank):
    with grid._drawn() as drawn:
        drawn.engine(campaign_in_process)
        drawn.plain(in_process)
        engine, plain = drawn.tables
        grid.agree(engine, plain, drawn.sizes)
