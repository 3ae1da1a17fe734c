"""Anderson acceleration against least squares, and on maps whose fixed points are known."""

import torch

from kernels.transport.anderson import Anderson


def test_a_linear_map_is_solved_in_as_many_steps_as_it_has_eigenvalues():
    """Where the plain iteration shrinks the error by a hundredth a step."""
    values = torch.tensor([0.99, 0.9, -0.5, 0.3], dtype=torch.float64).repeat(5)
    right = torch.linspace(1, 2, 20, dtype=torch.float64)
    anderson, g = Anderson(), torch.zeros(20, dtype=torch.float64)
    for _ in range(6):
        g = anderson.combined(anderson.add(g, values * g + right - g).tolist())
    torch.testing.assert_close(g, right / (1 - values), rtol=1e-6, atol=0)


def test_a_combination_that_lowers_the_dual_gives_way_to_the_plain_image():
    anderson, point = Anderson(), torch.zeros(3, dtype=torch.float64)
    images = []
    for dual in (0.0, 1.0, 2.0):
        step = torch.rand(3, generator=torch.Generator().manual_seed(int(dual))).double()
        images.append(point + step)
        point, rose = anderson.guarded(dual, anderson.add(point, step).tolist())
        assert rose
    point, rose = anderson.guarded(1.0, anderson.add(point, torch.ones(3).double()).tolist())
    assert not rose and torch.equal(point, images[-1])
    for dual in (1.0, float("nan")):  # the history begins anew, and with it the guard
        point, rose = anderson.guarded(dual, anderson.add(point, torch.ones(3).double()).tolist())
        assert rose == (dual == 1.0)
