"""The alpha that held-out images choose, against interpolated weights in float64."""

import pytest

from helpers.grids import CONV, Grid, images, labels, reference, weights

ON = ("method=wise_ft_tuned", f"model.arch={CONV}", "optimizer.lr=0.03", "train.epochs=3")


def accuracies(grid: Grid, alphas: list[float]) -> tuple[dict[float, int], str, str]:
    """Correct held-out images by alpha, and the names of the pretrained model and of FT."""
    builder = grid.builder(*ON)
    tuned, index = builder.cell("fine_tune"), builder.target.holdout
    x, y = images(grid, "outline", index, CONV), labels(grid, "outline", index)
    before, after = builder.base.state(), weights(tuned)
    right = {}
    for alpha in alphas:
        mixed = {k: before[k] + alpha * (after[k].double() - before[k]) for k in before}
        right[alpha] = int((reference(mixed, CONV)(x).argmax(1) == y).sum())
    return right, builder.base.name, tuned.name


@pytest.mark.parametrize("alphas", [[i / 10 for i in range(11)], [1.0, 0.9, 0.7]])
def test_the_interpolation_is_the_first_of_the_most_accurate(grid, alphas):
    right, before, after = accuracies(grid, alphas)
    assert len(set(right.values())) > 1, "every alpha is as accurate: this test sees no choice"
    best = min(alpha for alpha in alphas if right[alpha] == max(right.values()))
    _, cell = grid.build(*ON, f"method.alphas={alphas}")
    (entry,) = cell.entries
    assert entry.mix == pytest.approx({before: 1 - best, after: best}) and entry.alpha is None
