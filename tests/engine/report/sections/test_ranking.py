"""The sections on samples seen in pretraining and on the trade-off."""

import pytest

from engine.measures.rows import PRE
from engine.report.results import Results
from engine.report.sections import ranking
from helpers.made_results import TITLES, drawn, of_cells, row
from helpers.stores import SETS

SEEN = {"large": 12_800 * 10**6, "tiny": 13 * 10**6, "small": 128 * 10**6}
SEEN["also large"] = SEEN["large"]
# By model: accuracy before fine-tuning, and after it on other datasets, by FT and by LwF.
ACCURACY = {"large": (60, 50, 62), "tiny": (20, 18, 19), "small": (56, 54, 54)}
ACCURACY["also large"] = 60.5, 52, 60


def made(**values) -> Results:
    cells = []
    for model, (before, *after) in ACCURACY.items():
        cells += [(model, PRE, "", None, "", "", on, before) for on in (*SETS, "up")]
        for method, accuracy in zip(TITLES, after, strict=True):
            arm = (model, method, "original", None, "")
            cells += [(*arm, i, j, 70 if i == j else accuracy) for i in SETS for j in (*SETS, "up")]
    return of_cells(cells, **{"samples_seen": SEEN, **values})


def test_models_of_equal_start_are_compared_by_samples_seen():
    section = ranking.by_samples_seen(made())
    every, pairs = (table.data for table in section.tables)
    assert list(every["model"])[::2] == ["tiny", "small", "large", "also large"]
    assert row(every, model="small", method="FT")["before_pct"] == pytest.approx(56)
    assert row(every, model="small", method="FT")["mRI_pts"] == pytest.approx(-2)
    assert set(zip(pairs["more_samples"], pairs["fewer_samples"], strict=True)) == {
        ("large", "small"), ("also large", "small")
    }, "tiny starts elsewhere, and the large ones saw equally many"  # fmt: skip
    assert set(pairs["times"]) == {100}
    numbers = {(p.method, p.more_samples): p for p in pairs.itertuples()}
    expected = {
        ("FT", "large"): -8, ("LwF", "large"): 4,
        ("FT", "also large"): -6.5, ("LwF", "also large"): 1.5,
    }  # fmt: skip
    assert {key: pair.difference_pts for key, pair in numbers.items()} == pytest.approx(expected)
    assert numbers["FT", "large"].before_pts == pytest.approx(4)
    assert all(p.difference_low < p.difference_pts < p.difference_high for p in numbers.values())
    significant = pairs[pairs["adjusted_p"] < 0.05]["difference_pts"]
    assert section.heading == (
        f"With more samples seen in pretraining, mRI is significantly higher in "
        f"{(significant > 0).sum()} of 4 pairs of models of similar accuracy before fine-tuning, "
        f"lower in {(significant < 0).sum()}"
    )
    assert (significant < 0).sum() == 2 and set(drawn(section)) == {"samples-seen"}


@pytest.mark.parametrize("seen", [{}, {"large": 5, "small": 5}])
def test_without_different_numbers_there_is_no_section(seen):
    assert ranking.by_samples_seen(made(samples_seen=seen)) is None


def test_models_that_start_apart_are_not_compared():
    section = ranking.by_samples_seen(made(samples_seen={"large": 10, "tiny": 5}))
    assert section.heading == "No two models start within 5 points of each other"
    assert section.tables[1].data.empty


def test_the_pre_trained_model_stands_at_its_accuracies_on_the_same_sets():
    """Where the set fine-tuned on is none of the others, the two accuracies are of unlike sets."""
    before = {name: 40 + 10 * k for k, name in enumerate((*SETS, "up"))}
    cells = [("lite0", PRE, "", None, "", "", on, accuracy) for on, accuracy in before.items()]
    cells += [("lite0", "fine_tune", "original", None, "", "up", on, 30) for on in before]
    section = ranking.trade_off(of_cells(cells, downstreams=["up"]))
    points = section.figures[0].data.set_index("label")
    assert points.loc["pretrained", "downstream_accuracy_pct"] == before["up"] == 70
    assert points.loc["pretrained", "OOD_accuracy_pct"] == pytest.approx(50)
