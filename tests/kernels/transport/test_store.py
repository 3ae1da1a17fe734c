"""The ground cost, its blocks and its stored copy against their formulas."""

from __future__ import annotations

import pytest
import torch
from clouds import CLASSES, dense, labelled, problem

from kernels.transport import cost as ground_cost
from kernels.transport import quantize
from kernels.transport.cost import STRIP_ROWS, GroundCost
from kernels.transport.store import COARSE, FINE, SINGLE, beside_the_copy, store


def test_the_ground_cost_is_its_formula():
    (x, labels_x), (y, labels_y) = labelled(40, 0), labelled(33, 1)
    table = torch.rand(CLASSES, CLASSES)
    cost = GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table, lam_x=0.5, lam_y=3.0)
    expected = 0.5 * torch.cdist(x.double(), y.double()) ** 2 + 3 * table[labels_x][:, labels_y]
    sorted_rows = expected[cost.x.order][:, cost.y.order]
    torch.testing.assert_close(dense(cost), sorted_rows)
    assert cost.mean == pytest.approx(expected.mean().item())
    torch.testing.assert_close(cost.x.unsorted(cost.x.labels), labels_x)


@pytest.mark.parametrize("copy", [COARSE, SINGLE, FINE])
def test_the_stored_cost_is_off_by_half_a_step(copy, caplog):
    cost = problem(300, 41)
    stored = store(cost, copy=copy)
    held = stored.offset[:, None] + stored.step[:, None] * stored.q
    bound = 0.51 * stored.step[:, None] + 1e-5 * cost.mean
    assert ((held - dense(cost)).abs() <= (bound if copy is COARSE else 1e-6 * cost.mean)).all()
    caplog.set_level("INFO")
    held_at = beside_the_copy(cost) + stored.q.nbytes
    assert store(cost, copy=copy, memory=held_at).q is not None and not caplog.messages
    streamed = store(cost, copy=copy, memory=held_at - 1)
    assert streamed.q is None
    assert [m for m in caplog.messages if "300 x 41 cost matrix is computed again" in m]
    assert torch.equal(torch.cat([q for _, q in streamed.parts()]), stored.q)


def test_the_compiled_quantization_is_that_of_the_operators(monkeypatch):
    pytest.importorskip("numba")
    for cost in (problem(300, 41), problem(STRIP_ROWS + 7, 30, lam_x=0.5, lam_y=2.0)):
        plain = store(cost, copy=COARSE)
        monkeypatch.setattr(quantize, "_COMPILE_FROM", 0)
        compiled = store(cost, copy=COARSE)
        monkeypatch.undo()
        for before, after in ((plain.offset, compiled.offset), (plain.step, compiled.step)):
            torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5 * cost.mean)
        assert (compiled.q.int() - plain.q.int()).abs().max() <= 2  # float32 of another order
        held = compiled.offset[:, None] + compiled.step[:, None] * compiled.q
        assert (
            (held - dense(cost)).abs() <= 0.51 * compiled.step[:, None] + 1e-6 * cost.mean
        ).all()


def test_blocks_are_classes_unless_those_are_large_or_many(monkeypatch):
    labels = torch.arange(4).repeat_interleave(torch.tensor([3, 1, 30, 2]))
    (x, y), tables = torch.randn(2, 36, 3), torch.ones(4, 4)

    def bounds():
        cost = GroundCost(x, y, labels_x=labels, labels_y=labels, table=tables)
        return cost.x.bounds.tolist()

    assert bounds() == [0, 3, 4, 34, 36]
    monkeypatch.setattr(ground_cost, "_LONGEST", 12)
    assert bounds() == [0, 3, 4, 14, 24, 34, 36]
    monkeypatch.setattr(ground_cost, "_BLOCKS", 4)
    assert bounds() == [0, 3, 18, 34, 36]
    assert GroundCost(x, y).x.bounds.tolist() == [0, 18, 36]
    generator = torch.Generator().manual_seed(0)
    for most in (2, 5, 40):  # whatever sizes classes have
        monkeypatch.setattr(ground_cost, "_BLOCKS", most)
        for _ in range(50):
            sizes = torch.rand(30, generator=generator).pow(-1.5).long()
            labels = torch.arange(30).repeat_interleave(sizes)
            block_bounds = ground_cost.Cloud(*[labels] * 4).bounds
            assert (
                (block_bounds.diff() > 0).all()
                and block_bounds[0] == 0
                and block_bounds[-1] == len(labels)
            )
            assert len(block_bounds) - 1 <= most


def test_memory_counts_column_sums_of_blocks():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    single, many = torch.zeros(60, dtype=torch.int64), torch.arange(60)
    costs = [
        GroundCost(x, x + 1, labels_x=y, labels_y=y, table=torch.ones(60, 60))
        for y in (single, many)
    ]
    few, more = map(beside_the_copy, costs)
    assert more - few == 2 * 4 * 59 * 60
    with pytest.raises(ValueError, match="block sums of the 60 x 60"):
        store(costs[1], memory=more - 1)
