"""A column that is trained twice, and what a campaign makes of it."""

import shutil

import pytest

from engine import cli
from engine.campaigns import job_states
from engine.measures.rows import of_role
from helpers import campaigns


def columns(name: str, *words: str) -> list[tuple[str, bool]]:
    plan = campaigns.plan_of(name, *words)
    return [(column.name, column.is_replicate) for column in plan.columns]


def test_the_middle_columns_are_trained_again_with_the_next_seed():
    names = [name for name, is_replicate in columns("emoji") if not is_replicate]
    assert columns("emoji")[8:] == [("openmoji,seed=1", True)] and len(names) == 8
    two = columns("emoji", "replicates=2", "seed=4")[8:]
    assert two == [("noto-v1,seed=5", True), ("emojione-monotone,seed=5", True)]
    assert columns("imagenet_rib")[7:] == [("imagenet_sketch,seed=1", True)]
    plan = campaigns.plan_of("emoji")
    assert {cell.recipe.seed for cell in plan.cells(plan.columns[-1])} == {1}
    assert plan.downstreams == names and len(plan.jobs) == 12


def test_where_nothing_is_compared_or_seeds_are_several_there_is_no_replicate():
    for words in (["replicates=0"], ["seeds=2"], ["methods=[ewc]"], ["downstreams=[openmoji]"],
                  ["param_grid={optimizer.lr: [1e-4, 1e-3]}"]):  # fmt: skip
        assert not any(is_replicate for _, is_replicate in columns("emoji", *words)), words
    assert not any(is_replicate for _, is_replicate in columns("emoji_upstream"))


@pytest.mark.slow
def test_a_replicate_trains_one_column_again_and_leaves_all_cells_as_they_are(
    folder, finished, grid, tmp_path, monkeypatch, capsys
):
    runs = shutil.copytree(finished, tmp_path / "runs")
    ran = campaigns.in_this_process(monkeypatch)
    words = [str(folder / "shapes.yaml"), f"runs={runs}", "replicates=1"]
    before = {path.name for path in (runs / "store/cells").iterdir()}
    assert cli.main(["campaign", *words]) == 0
    assert "column-tinted,seed=1" in ran
    made = {path.name for path in (runs / "store/cells").iterdir()} - before
    assert made and all("-tinted-" in name for name in made)
    (report,) = runs.glob("shapes-*/report")
    plain = runs / "shapes/report"
    for name in ("accuracy.csv", "behaviour.csv"):
        assert (report / name).read_bytes() == (plain / name).read_bytes()
    seeds = campaigns.rows(report / "seeds.csv")
    assert {(row["downstream"], row["seed"]) for row in seeds} == {("tinted", "0"), ("tinted", "1")}
    wide, narrow = (campaigns.rows(of / "mri.csv") for of in (report, plain))
    for a, b in zip(wide, narrow, strict=True):
        assert a["mRI_pts"] == b["mRI_pts"] and a["method"] == b["method"]
        width, width_before = (float(r["mRI_high"]) - float(r["mRI_low"]) for r in (a, b))
        # The linear probe is fitted to its optimum, and alpha 0 is the model before.
        varies = a["method"] != "linear_probe" and a["alpha"] != "0.0"
        assert (width > width_before) == varies
    page = (report / "index.html").read_text()
    assert "Models on tinted were trained a second time" in page and "(one training)" not in page
    assert "(one training)" in (plain / "index.html").read_text()
    replicated = campaigns.of_report(report)
    place = replicated.place
    replicates = of_role(replicated.record.evaluations, "replicate")
    assert {row.seed for row in replicates} == {1}
    assert {row.downstream for row in replicates} == {"tinted"}
    assert {row.method: row.trains for row in replicates} == {
        "fine_tune": True, "linear_probe": True, "wise_ft": False}  # fmt: skip

    # Where the replicate alone is unfinished, the report is that of one training.
    (place.path / job_states.DONE / "column-tinted,seed=1").unlink()
    place.record.unlink()
    assert cli.main(["report", str(report.parent)]) == 0
    page = (report / "index.html").read_text()
    assert "(one training)" in page and "tinted,seed=1 are not in this report" in page
