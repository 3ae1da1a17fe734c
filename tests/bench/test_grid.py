"""The whole grid of `python -m bench grid`, by the engine and by the plain script."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import contest, grid, plain_grid
from bench.contest import Contest, Entrant
from bench.grid_programs import METHODS, Counts, Grid, Images
from bench.roofline import Roofline
from bench.timing import interleave, processor_seconds

CPU = torch.device("cpu")
BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def busy() -> None:
    subprocess.run([sys.executable, "-S", "-c", BUSY], check=True)


def images(path, **sizes: int) -> Images:
    for name, size in sizes.items():
        (path / "images" / name / "a").mkdir(parents=True)
        for number in range(size):
            (path / "images" / name / "a" / f"{number}.jpg").touch()
    names = tuple(name for name in sizes if name != "upstream")
    settings = {"lr": 0.1, "epochs": 2, "batch_size": 8}
    return Images(path, names, names[:1], "test_convnext", 32, settings)


def test_processor_time_holds_that_of_ended_processes():
    before = processor_seconds()
    (times,) = interleave([busy], CPU, seconds=0, least=1, processor_time=True, warm=False)
    assert len(times) == 1 and times[0] >= 300
    assert 0.3 <= processor_seconds() - before < 0.6  # it ran once: there was no warm-up


def test_a_contest_of_one_round_has_its_figures_in_its_row():
    subject = Entrant("ours", lambda: None, figures={"decoded": 3})
    held = Contest("c", subject, (Entrant("theirs", lambda: None),), rounds=1, warm=False)
    (row,) = contest.hold(held, Roofline(1.0, 1.0), CPU, seconds=0)
    assert row.rounds == 1 and row.low == row.measured == row.high and row.predicted is None
    assert row.figures == {"ours": {"decoded": 3}}


def test_tables_agree_up_to_an_image_of_the_pre_trained_model_and_points_of_others(tmp_path):
    small, large = (
        images(tmp_path / "a", upstream=50, one=50),
        images(tmp_path / "b", upstream=200, one=500),
    )
    table = {("pre", 1.0, "", str(number)): 50.0 for number in range(100)}
    key = ("pre", 1.0, "", "0")
    grid.agree(table, table | {key: 52.0}, small)
    with pytest.raises(AssertionError, match=r"'pre', .* 50\.00 by the engine, 52\.00"):
        grid.agree(table, table | {key: 52.0}, large)
    trained = {("ewc", *key[1:]): value for key, value in table.items()}
    grid.agree(trained, trained | {("ewc", *key[1:]): 54.0}, large)
    with pytest.raises(AssertionError, match=r"'ewc', .* 50\.00 by the engine, 56\.00"):
        grid.agree(trained, trained | {("ewc", *key[1:]): 56.0}, large)
    with pytest.raises(AssertionError, match=r"by 1\.50 points on average"):
        grid.agree(trained, dict.fromkeys(trained, 51.5), large)
    with pytest.raises(AssertionError, match="in one table alone"):
        grid.agree(table, {}, large)


def test_images_that_the_plain_script_reads_are_known_before(tmp_path):
    """40 upstream and 10 + 20 downstream, a column on the 10: 20 images in two epochs.

    As released: 8 models see all 70, the pre-trained among them; five methods train, LwF's teacher
    sees as many. As in the papers: FT, EWC, LwF, the soup and 11 mixes; EWC's Fisher sees upstream.
    """
    small = images(tmp_path, upstream=40, one=10, two=20)
    assert Grid(small, "paper").plain_counts == Counts(8 * 70 + 5 * 20, 8 * 70 + 6 * 20, 5 * 20)
    canonical = Counts(16 * 70 + 3 * 20 + 40, 16 * 70 + 4 * 20 + 40, 3 * 20 + 40)
    assert Grid(small, "canonical").plain_counts == canonical


def test_a_mix_is_a_weighted_mean_that_keeps_counts():
    first = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(7)}
    second = {"w": torch.tensor([4.0, 0.0]), "count": torch.tensor(9)}
    mix = plain_grid.mixed([(0.25, first), (0.75, second)])
    assert mix["w"].tolist() == [3.0, 1.0] and mix["count"] == 7


def test_the_rate_of_the_plain_script_is_the_engines():
    from engine.training import optim

    rates = [plain_grid.learning_rate(step, 40, 0.1) for step in range(40)]
    expected = [optim.learning_rate(step, 40, 4, 0.1) for step in range(40)]
    np.testing.assert_allclose(rates, expected)


@pytest.mark.slow
@pytest.mark.parametrize("variant", METHODS)
def test_the_plain_script_counts_what_it_does_and_a_wrong_rate_shows(variant, monkeypatch):
    rate = plain_grid.learning_rate
    with grid._drawn() as drawn:
        small = Grid(drawn, variant)
        right = small.plain(grid.in_process)
        assert right.counts == small.plain_counts
        monkeypatch.setattr(plain_grid, "learning_rate", lambda *of: 3 * rate(*of))
        wrong = small.plain(grid.in_process)
    with pytest.raises(AssertionError, match="accuracies differ"):
        grid.agree(right.table, wrong.table, drawn)
