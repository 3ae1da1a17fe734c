"""The barrier between two models, by hand, and the section that shows it."""

import pytest
from made_results import of_arms
from stores import SETS

from engine.report.sections import curves

# Accuracy by alpha: on the set fine-tuned on, and on the others.
ACCURACIES = {0.0: (50, 50), 0.25: (52, 50), 0.5: (75, 30), 1.0: (90, 40)}


def test_the_section_has_the_barriers_of_each_column() -> None:
    arms = {("wise_ft", alpha, ""): of for alpha, of in ACCURACIES.items()}
    section = curves.barrier(of_arms(arms, methods={"wise_ft": "WiSE-FT"}))
    assert section is not None
    data = section.tables[0].data
    assert list(data["downstream"]) == list(SETS) and set(data["alphas"]) == {4}
    assert set(data["method"]) == {"WiSE-FT"}
    # At 0.25 the line has (100 + 0.25 * 80) / 2 = 60%, at 0.5 elsewhere (100 - 0.5 * 20) / 2 = 45%.
    assert data["barrier_on_downstream_set_pct"].tolist() == pytest.approx([8.0] * 3)
    assert data["barrier_on_other_sets_pct"].tolist() == pytest.approx([15.0] * 3)
    assert section.heading == (
        "Mixed weights fall below the line between both ends by at most 8.0 points on the set "
        "fine-tuned on and 15.0 points on the other sets"
    )
    del arms["wise_ft", 0.0, ""]
    assert curves.barrier(of_arms(arms)) is None, "without both ends"
