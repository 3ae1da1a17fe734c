"""Training dynamics: curves against plain means, and the claim on curves of either outcome."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measures import dynamics
from engine.measures.rows import PRE, Arm, Evaluation
from helpers import stores
from helpers.stores import setting

ARM = Arm("lite0", "fine_tune", "original", None)
STEPS = [0, 1, 10, 100]
SETS = list(stores.SETS)


def claim_of(downstream: list[float], ood: list[float], noise: float):
    """The claim of curves whose draws lie around them with this standard deviation."""
    values = np.array([downstream, ood], float)
    draws = values + noise * np.random.default_rng(0).standard_normal((4000, *values.shape))
    rows = dynamics.claim(STEPS, values, draws, values[None]).itertuples()
    return next(rows, None)


def test_ood_accuracy_that_falls_before_saturation_bears_the_claim_out():
    claim = claim_of([20, 40, 58, 60], [30, 36, 31, 25], noise=0.5)
    assert (claim.peak, claim.peak_OOD, claim.saturation, claim.best) == (1, 36, 10, 1)
    assert claim.fall == 5 and claim.fall_low < 5 < claim.fall_high and claim.holds
    # Two earlier steps: the interval leaves 0.05 / 2 out, half of it at either side.
    expected = 5 + 0.5 * 2**0.5 * 2.2414 * np.array([-1, 1])
    np.testing.assert_allclose([claim.fall_low, claim.fall_high], expected, atol=0.15)


def test_a_fall_after_saturation_or_within_the_noise_does_not():
    after = claim_of([20, 58, 59, 60], [30, 36, 31, 25], noise=0.5)
    assert (after.peak, after.saturation, after.best) == (1, 1, 0)
    assert after.fall == -6 and after.fall_high < 0 and not after.holds
    unsure = claim_of([20, 40, 58, 60], [30, 36, 31, 25], noise=5)
    assert unsure.fall == 5 and unsure.fall_low < 0 and not unsure.holds


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4), st.data())
def test_what_a_claim_says_of_its_steps_is_so(downstream: list[int], data: st.DataObject):
    ood = data.draw(st.lists(st.integers(0, 100), min_size=4, max_size=4))
    claim = claim_of(list(map(float, downstream)), list(map(float, ood)), noise=0.1)
    if max(downstream) == downstream[0]:
        assert claim is None
        return
    at = dict(zip(STEPS, zip(downstream, ood, strict=True), strict=True))
    level = downstream[0] + 0.95 * (max(downstream) - downstream[0])
    reached = [step for step in STEPS if at[step][0] >= level - 1e-9]
    assert claim.saturation == reached[0]
    earlier = [step for step in STEPS if step < claim.saturation]
    assert claim.best in earlier and claim.peak in STEPS
    assert claim.fall == max(at[step][1] for step in earlier) - at[claim.saturation][1]
    assert claim.fall_low <= claim.fall_high and claim.holds == (claim.fall_low > 0)


def grid_of(folder: Path, seeds: tuple[int, ...]) -> list[Evaluation]:
    """A grid whose fine-tuned models have two snapshots; the last is the cell itself."""
    rng = np.random.default_rng(0)
    shares = {PRE: 0.3, "fine_tune": 0.6, "early": 0.5}

    def hits(seed: int) -> stores.Hits:
        return lambda method, downstream, on: rng.random(40 if on != "b" else 24) < shares[method]

    rows = stores.several_seeds(folder, hits, seeds, methods=("fine_tune", "early"))
    early, last = (dict(setting=setting(f"step={step}"), headline=False) for step in (3, 30))
    return [
        *(row for row in rows if row.method == PRE),
        *(row for row in rows if row.method == "fine_tune"),
        *(replace(row, **last) for row in rows if row.method == "fine_tune"),
        *(replace(row, method="fine_tune", **early) for row in rows if row.method == "early"),
    ]


def test_curves_are_means_of_accuracies(tmp_path: Path):
    grid = stores.gather(grid_of(tmp_path, (0, 1, 2)))
    ((arm, points, _),) = dynamics.curves(grid)
    assert arm == ARM
    by_cell = {
        (row.setting, row.downstream, row.evaluated_on): row.accuracy
        for row in grid.cells.itertuples()
    }
    for step in (0, 3, 30):
        of_step = f"step={step}" if step else ""
        accuracy = {
            (i, j): by_cell[of_step, i if step else "", j] for i in SETS for j in (*SETS, "up")
        }
        expected = {
            "downstream": np.mean([accuracy[i, i] for i in SETS]),
            "ood": np.mean([accuracy[i, j] for i in SETS for j in SETS if i != j]),
            "upstream": np.mean([accuracy[i, "up"] for i in SETS]),
        }
        for quantity, value in expected.items():
            (point,) = points.query(f"quantity == '{quantity}' and step == {step}").itertuples()
            assert point.value == pytest.approx(value)
            assert point.low < value < point.high
            assert point.high - point.low > 3


@pytest.mark.parametrize(
    ("downstreams", "expected"), [(["up"], (70, 66)), (["a", "up"], (70, 63)), (["train"], None)]
)
def test_sets_fine_tuned_on_count_where_they_are_evaluated(
    downstreams: list[str], expected: tuple[float, float] | None
):
    """Each alike, also where a set of RI has one set less to be measured on."""
    cells: list[tuple] = [("m", PRE, "", None, "", "", on, 40.0) for on in (*SETS, "up")]
    arm = ("m", "fine_tune", "original", None, "step=1")
    for on_set in downstreams:
        elsewhere = 66 if on_set == "up" else 60
        cells += [(*arm, on_set, on, 70 if on == on_set else elsewhere) for on in (*SETS, "up")]
    made = dynamics.curves(stores.synthetic(cells, SETS, "up", downstreams))
    values = [
        tuple(points[points["step"] == 1].set_index("quantity")["value"][["downstream", "ood"]])
        for _, points, _ in made
    ]
    assert values == ([] if expected is None else [pytest.approx(expected)])


def test_curves_without_a_common_start_are_refused(tmp_path: Path):
    rows = [
        replace(row, setting=setting("step=1")) if row.method != PRE else row
        for row in stores.grid(tmp_path, lambda _, i, j: np.ones(20 if i == j else 40, bool))
    ]
    with pytest.raises(ValueError, match="saw different images of it"):
        dynamics.curves(stores.gather(rows))
