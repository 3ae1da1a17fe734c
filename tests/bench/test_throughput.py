"""The arithmetic of every prediction, beside what others measured."""

import pytest

from bench import throughput


@pytest.mark.slow
def test_published_throughputs_are_predicted_within_a_quarter():
    rows = list(throughput.throughputs())
    assert len(rows) == 72 and throughput.median_error(rows) < throughput.MOST
    assert all(0.6 < row.ratio < 1.6 for row in rows)
