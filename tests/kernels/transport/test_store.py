"""The ground cost and its stored copy against their formulas."""

import pytest
import torch

from helpers.children import DEVICE
from helpers.clouds import CLASSES, dense, labelled, problem
from kernels.transport import store as module
from kernels.transport.cost import GroundCost
from kernels.transport.store import beside_the_copy, store


def test_the_ground_cost_is_its_formula():
    (x, labels_x), (y, labels_y) = labelled(40, 0), labelled(33, 1)
    table = torch.rand(CLASSES, CLASSES)
    cost = GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table)
    expected = torch.cdist(x.double(), y.double()) ** 2 + table[labels_x][:, labels_y]
    by_class = expected[labels_x.argsort(stable=True)][:, labels_y.argsort(stable=True)]
    torch.testing.assert_close(dense(cost), by_class)
    assert cost.mean == pytest.approx(expected.mean().item())


@pytest.mark.gpu
def test_sums_over_classes_repeat_bit_for_bit():
    cost = problem(5000, 40, device=DEVICE)
    means, shares = cost.x.class_means(CLASSES + 1)
    for label in range(CLASSES):
        of_class = cost.x.x[cost.x.labels == label]
        torch.testing.assert_close(means[label], of_class.mean(0))
        assert shares[label] == len(of_class) / 5000
    assert not means[CLASSES].any() and shares[CLASSES] == 0
    assert all(torch.equal(cost.x.class_means(CLASSES + 1)[0], means) for _ in range(9))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_rows_of_equal_costs_are_stored_exactly(dtype):
    x, _ = labelled(40, 0)
    cost = GroundCost(x, x[:1].expand(9, -1))
    stored = store(cost, dtype)
    assert torch.equal((stored.offset[:, None] + stored.step[:, None] * stored.q), dense(cost))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_the_stored_cost_is_off_by_half_a_step(dtype, caplog, monkeypatch):
    monkeypatch.setitem(module.STRIP, "cpu", 41 * 64)
    cost = problem(300, 41)
    stored = store(cost, dtype)
    held = stored.offset[:, None] + stored.step[:, None] * stored.q
    bound = 0.5001 * stored.step[:, None] if dtype == torch.int16 else 1e-6 * cost.mean
    assert ((held - dense(cost)).abs() <= bound).all()
    caplog.set_level("INFO")
    beside = beside_the_copy(300, 41, torch.device("cpu"))
    held_at = beside + stored.q.nbytes
    assert store(cost, dtype, memory=held_at).q is not None and not caplog.messages
    streamed = store(cost, dtype, memory=held_at - 1)
    assert streamed.q is None
    assert [m for m in caplog.messages if "recomputing the 300 x 41 cost matrix" in m]
    assert torch.equal(torch.cat([q for _, q in streamed.parts()]), stored.q)
    with pytest.raises(ValueError, match="partial sums of the 300 x 41"):
        store(cost, dtype, memory=beside - 1)
