"""The workflow's hours and shape on numbers of GPUs, by sums that a reader can repeat."""

import dataclasses
import time
from unittest import mock

import pytest

from engine.campaigns import simulation
from engine.campaigns.plan import EVALUATE, REPORT, TRAIN, Column, Shape, stage_of
from engine.campaigns.simulation import Planned, best_shape, queued_shape, simulated
from engine.cost import estimate, flops, rates, work
from engine.cost.estimate import Device
from engine.measures.rows import Setting
from helpers.campaigns import plan_of

ONE = Shape()


def planned(name: str, *words: str) -> Planned:
    """Without the second that timing the model takes."""
    with mock.patch.object(flops, "forward_tflops", lambda *_: 1.0):
        return simulation.planned(plan_of(name, *words))


@pytest.fixture(scope="module")
def grid(folder) -> Planned:
    return planned(folder / "shapes.yaml", f"runs={folder / 'none'}")


def columns_of(grid: Planned, device: Device, ranks: int = 1) -> list[float]:
    return [device.hours(work.in_a_job(parts), ranks) for parts in grid.costs.columns]


def test_rows_add_up_to_the_time_on_one_gpu(grid):
    for device in (estimate.gpu("A100"), estimate.users_gpu(500.0)):
        rows = map(device.hours, grid.costs.by_name().values())
        assert simulated([grid], device, 1, ONE).hours == pytest.approx(sum(rows))


def test_gpus_take_columns_as_a_formula_says(grid):
    device = Device("any", 1e-9, 1e-9)
    before, apart = device.hours(grid.costs.shared), device.hours(grid.costs.distances)
    few, second, longest = sorted(columns_of(grid, device))
    hours = [simulated([grid], device, gpus, ONE).hours for gpus in (1, 2, 3)]
    assert apart < few and hours == pytest.approx(
        [
            before + few + second + longest + apart,
            before + max(longest + apart, second + few),
            before + max(longest, second, few + apart),
        ]
    )
    core = estimate.cpu(1, 1e-9)
    first, second, third = columns_of(grid, core)  # on cores, in order, after the distances
    shared, apart = map(core.hours, (grid.costs.shared, grid.costs.distances))
    assert grid.hours_on_cores(core, 2) == pytest.approx(
        shared + min(max(first + third, apart + second), max(first, apart + second + third))
    )


def test_the_preparation_has_the_ranks_of_a_column(grid):
    """They divide its passes, and each compiles all graphs, for its own GPU."""
    device, costs = Device("any", 1e-9, 1e-9), grid.costs
    once = sum(part.gpu_s for part in costs.shared) / 3600
    passes = device.hours(costs.shared) - once
    few, second, longest = sorted(columns_of(grid, device, 2))
    last = max(longest, second, few + device.hours(costs.distances))
    hours = simulated([grid], device, 6, Shape(2)).hours
    assert hours == pytest.approx(once + passes / 2 + last)
    assert costs.memory_gb(8) == pytest.approx(costs.memory_gb() + 7 * estimate.PROCESS_GB)


def test_several_machines_notice_an_end_late_and_models_share_the_gpus(grid):
    device, late = estimate.gpu("A100"), rates.NOTICE_S / 3600
    few, many = (simulated([grid], device, gpus, ONE) for gpus in (8, 64))
    assert many.hours == pytest.approx(few.hours + 2 * late), "the preparation's and the columns'"
    alone = simulated([grid], device, 8, ONE)
    packed = simulated([grid, grid], device, 8, ONE)
    assert packed.hours == pytest.approx(alone.hours), "eight GPUs have room for both"
    assert packed.work == pytest.approx(2 * alone.work)
    divided = [simulated([grid], device, gpus, Shape(1, 4)).hours for gpus in (8, 64)]
    assert divided[1] >= divided[0] + 3 * late, "there are two stages more"


def test_shares_of_a_column_are_its_work_and_what_each_job_starts(grid):
    device, plan = Device("any", 1e-9, 1e-9), grid.plan
    shares = Planned(dataclasses.replace(plan, jobs_per_column=3), grid.costs)
    one, three = ({job.name: job for job in each.jobs(device, 1)} for each in (grid, shares))
    start, trace = rates.START_S / 3600, rates.TRACE_S / 3600
    for column in plan.columns:
        ours = [job for job in shares.plan.shares.values() if job.column == column]
        hours = [three[share.job].hours for share in ours]
        stages = [stage_of(share.job) for share in ours]
        assert stages == [TRAIN] + 3 * [EVALUATE] and three[column.job].hours == start
        assert sum(hours) - 4 * (start + trace) == pytest.approx(
            one[column.job].hours - start - 2 * trace
        )
        assert hours[1] > hours[2] == hours[3], "of four models, the first has two"
    names = [*three]
    assert all(names.index(need) < k for k, j in enumerate(three.values()) for need in j.needs)


def test_the_shape_is_the_one_that_ends_first_at_least_gpu_time(grid):
    """Three columns, batches of 12; a machine of 8 GPUs has room for whole jobs."""
    slow, quick = Device("slow", 1e-9, 1e-9), Device("quick", 1e9, 1e9)
    assert [best_shape([grid], quick, gpus) for gpus in (1, 8, 64)] == [ONE] * 3
    assert best_shape([grid], slow, 1) == ONE
    assert best_shape([grid], slow, 64) == Shape(4, 4), "four models are evaluated side by side"
    assert best_shape([grid], slow, 64, gpus_per_job=2).gpus_per_job == 2
    assert best_shape([grid], slow, 64, jobs_per_column=1) == Shape(4, 1)
    hours = {n: simulated([grid], slow, 64, Shape(n)).hours for n in (1, 2, 4)}
    assert hours[4] < hours[2] < hours[1]


def test_queued_jobs_spend_at_most_a_fifth_of_their_time_on_starts(grid):
    slow, quick = Device("slow", 1e-9, 1e-9), Device("quick", 1e9, 1e9)
    assert queued_shape([grid], quick, 1) == (ONE, 1.0)
    shape, gain = queued_shape([grid], slow, 1)
    assert shape == Shape(1, 4) and gain > 1.2
    assert queued_shape([grid], slow, 2)[0] == Shape(2, 4)


def test_a_published_grid_simulated_and_by_its_parts():
    """64 GPUs with one per job take as long as 9; all models share what one leaves idle."""
    grid, device = planned("imagenet_rib"), estimate.gpu("A100")
    nine, all_of_them = (simulated([grid], device, gpus, ONE) for gpus in (9, 64))
    ends = device.hours(grid.costs.shared) + max(columns_of(grid, device))
    assert 0.9 * nine.hours < ends <= all_of_them.hours < 1.1 * ends
    assert all_of_them.work < 0.2 * 64 * all_of_them.hours
    seven = simulated([grid] * 7, device, 64, ONE)
    assert seven.hours < 1.2 * ends and seven.work == pytest.approx(7 * all_of_them.work)
    wide = best_shape([grid], device, 64, jobs_per_column=1)
    assert wide == Shape(8) and simulated([grid], device, 64, wide).hours < 0.3 * ends
    # Without an exchange of gradients, jobs that do shares of columns come close.
    shares, _ = queued_shape([grid], device, 1)
    assert shares == Shape(1, 8) and simulated([grid], device, 64, shares).hours < 0.35 * ends
    best = simulated([grid], device, 64, best_shape([grid], device, 64))
    assert best.hours <= simulated([grid], device, 64, wide).hours


def test_priorities_put_the_longest_chain_first(grid):
    plan = dataclasses.replace(grid.plan, jobs_per_column=2)
    with mock.patch.object(flops, "forward_tflops", lambda *_: 1.0):
        priority = simulation.priorities(plan, 1)
    assert [*priority] == plan.jobs
    for job, needs in plan.needs.items():
        assert all(priority[need] >= priority[job] for need in needs)
    assert all(seconds > 0 for job, seconds in priority.items() if job != REPORT)


def test_ten_thousand_columns_are_simulated_in_seconds(grid):
    columns = tuple(Column("few", Setting({"seed": seed})) for seed in range(10_000))
    plan = dataclasses.replace(grid.plan, columns=columns)
    many = Planned(plan, dataclasses.replace(grid.costs, columns=grid.costs.columns[:1] * 10_000))
    begin = time.process_time()
    assert best_shape([many], estimate.gpu("A100"), 64) == ONE
    assert time.process_time() - begin < 10


def test_the_demos_time_on_two_cores():
    """What it took on two cores of an AMD EPYC, without the seed replicate."""
    seconds = 3600 * planned("emoji", "replicates=0").hours_on_cores(estimate.cpu(1), 2)
    assert 0.75 * 200 < seconds < 1.25 * 233
