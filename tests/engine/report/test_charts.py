"""Where a scatter writes its names."""

import itertools

import numpy as np
import pandas
import pytest

from engine.report import charts


@pytest.mark.parametrize("seed", range(5))
def test_names_of_a_scatter_cover_no_dot_and_no_other_name(seed):
    rng = np.random.default_rng(seed)
    data = pandas.DataFrame(rng.normal(60, 9, (25, 2)), columns=["before_pct", "after_pct"])
    data["method"] = ["x" * int(rng.integers(2, 15)) + str(number) for number in range(25)]
    spec = charts.scatter(data, "before_pct", "after_pct", "method")
    texts = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    marks = {
        name: layer["mark"] for layer in texts for name in layer["transform"][0]["filter"]["oneOf"]
    }
    assert len(marks) == sum(len(of["transform"][0]["filter"]["oneOf"]) for of in texts) > 15
    ends = data[["before_pct", "after_pct"]].agg(["min", "max"]).to_numpy()
    dots, names = [], []
    for x, y, name in data.itertuples(index=False):
        at = (np.array([x, y]) - ends[0]) / (ends[1] - ends[0]) * (420, 340)
        across, up = at[0], 340 - at[1]
        dots.append((across - 5, up - 5, across + 5, up + 5))
        if mark := marks.get(name):
            width, middle = 6 * len(name), up + mark.get("dy", 0)
            shift = {"left": 0, "right": -width}.get(mark.get("align", ""), -width / 2)
            left = across + mark.get("dx", 0) + shift
            names.append((left, middle - 5, left + width, middle + 5))
    for a, b in [*itertools.combinations(names, 2), *itertools.product(names, dots)]:
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (a, b)
