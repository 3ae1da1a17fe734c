"""An ensemble as a campaign's row: it has numbers, and is no model that is exported or merged."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from engine import cli
from engine.campaigns.find_campaign import find_campaign
from engine.cost import estimate, flops
from engine.recipe.overrides import parsed
from helpers import campaigns
from helpers.evaluations import by_timm

pytestmark = pytest.mark.slow
ENSEMBLE = "  ensemble: {method: {members: [pretrained, fine_tune]}}\n"


@pytest.fixture(scope="module")
def words(folder, grid) -> list[str]:
    """The words that name a finished campaign with plain fine-tuning, a probe and an ensemble."""
    text = (folder / "shapes.yaml").read_text()
    (folder / "with.yaml").write_text(text[: text.index("  wise_ft:")] + ENSEMBLE)
    words = ["downstreams=[outline]", "extras.cka.images=6"]
    campaigns.run(folder, *words, name="with")
    return [str(folder / "with.yaml"), f"runs={folder / 'runs'}", *words]


def test_cka_leaves_it_out_and_says_so(words):
    campaign = find_campaign(words[0], parsed(words[1:]))
    assert {row.method for row in campaign.evaluations} == {
        "pretrained", "fine_tune", "linear_probe", "ensemble"
    }  # fmt: skip
    assert {row["method"] for row in campaign.record.extras["cka"]} == {"fine_tune", "linear_probe"}
    page = (campaign.place.report / "index.html").read_text()
    assert "without features of their own are excluded" in page


def test_its_row_costs_a_plan_predictions_and_no_pass(words, monkeypatch):
    monkeypatch.setattr(flops, "forward_tflops", lambda *_: 1.0)  # takes a second
    plan = find_campaign(words[0], parsed(words[1:])).plan
    *rest, ensemble = plan.rows
    assert ensemble == "ensemble"
    fewer = replace(plan, rows={name: plan.rows[name] for name in rest})
    without = estimate.campaign_cost(fewer.recipes, len(fewer.rows))
    actual = estimate.campaign_cost(plan.recipes, len(plan.rows))
    assert actual.columns == without.columns
    assert actual.disk["weights"] == without.disk["weights"]
    assert actual.disk["predictions"] > without.disk["predictions"]


def test_export_names_its_members(words, folder, tmp_path, capsys):
    for source in (words, [str(next((folder / "runs/store/cells").glob("ensemble-*")))]):
        chosen = ["--method", "ensemble", "--downstream", "outline"] if source is words else []
        assert cli.main(["export", *source, *chosen, "--out", str(tmp_path / "m")]) == 2
        error = capsys.readouterr().err
        assert "averages the outputs of 2 models and is not a single model" in error
        commands = [each.split("`")[0] for each in error.split("`rib export ")[1:]]
        assert len(commands) == 2
    for number, command in enumerate(commands):
        member, _, _ = command.partition(" --out")
        assert cli.main(["export", member, "--out", str(tmp_path / str(number))]) == 0
        assert timm.create_model(f"local-dir:{tmp_path / str(number)}", pretrained=True)


def test_it_is_judged_on_sets_of_ones_own(words, folder, grid):
    few = f"other={folder / 'images' / 'few'}"
    assert cli.main(["evaluate", "--campaign", *words, "--sets", few]) == 0
    report = find_campaign(words[0], parsed(words[1:])).place.report
    rows = {row["method"]: row for row in campaigns.rows(report / "accuracy-on-other.csv")}
    store = folder / "runs" / "store" / "cells"
    cells = [next(store.glob(f"{name}-*")) for name in ("linear_probe-upstream", "fine_tune")]
    states = [load_file(cell / "weights.safetensors") for cell in cells]
    answers = [by_timm(grid, "few", state, mask="none") for state in states]
    both, (truth, _) = zip(*answers, strict=True)
    right = torch.stack(both).mean(0).argmax(1) == truth
    assert float(rows["ensemble"]["accuracy_pct"]) == pytest.approx(100 * np.mean(right.numpy()))


@pytest.mark.parametrize("method", ["ensemble", "vrf"])
def test_files_are_not_merged_by_it(words, folder, tmp_path, capsys, method):
    cells = [str(path) for path in (folder / "runs/store/cells").glob("fine_tune-*")]
    cells.append(str(next((folder / "runs/store/cells").glob("linear_probe-outline-*"))))
    cells = cells if method == "ensemble" else [*cells[:1], "--base", cells[-1]]
    assert cli.main(["merge", method, *cells, "--out", str(tmp_path / "m")]) == 2
    assert " averages outputs, which no single model has" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
