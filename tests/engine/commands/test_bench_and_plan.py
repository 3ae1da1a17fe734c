"""What `rib bench` times on a CPU, what `rib plan` predicts, and what they refuse."""

import json

import pytest
import torch

from engine import cli
from engine.commands import plan
from engine.cost import throughput
from engine.recipe.overrides import parsed
from helpers.endings import refused

SMALL = ["vit_tiny_random", "device=cpu", "--steps", "2", "--batch", "2"]


@pytest.mark.slow
def test_a_row_for_each_method_and_pass(tmp_path, capsys, monkeypatch):
    """Each is measured by the peak of its own precision."""
    file, kinds = tmp_path / "speed.json", []
    monkeypatch.setattr(throughput, "peak", lambda _, kind: kinds.append(kind) or 1.0)
    assert cli.main(["bench", *SMALL, "evaluate.precision=bf16", "--json", str(file)]) == 0
    assert kinds == ["fp32", "fp32", "fp32", "bf16", "fp32", "bf16"]
    table = capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    names = ["fine_tune", "ewc", "lwf", "evaluation", "plain training", "plain evaluation"]
    assert [(row["what"], row["batch"]) for row in rows] == [(name, 2) for name in names]
    for row in rows:
        assert row["what"] in table and row["peak_mb"] is None and row["mfu"] > 0
        assert row["images_s"] == pytest.approx(1e3 * row["batch"] / row["ms"])


def test_a_users_method_and_a_model_of_ordered_tensors_are_timed(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: ewc\nlam: 2.0\n")
    words = parsed(["model=efficientnet_lite0", "device=cpu"])
    timed = throughput.Bench(tmp_path, "efficientnet_lite0", words, torch.device("cpu"), steps=1)
    builder = timed._builder(str(tmp_path / "mine.yaml"), 2)
    assert (builder.recipe.method.title, builder.recipe.method.lam) == ("Mine", 2.0)
    assert builder.base.state(), "random weights ask nothing of the recipe's package"
    with pytest.raises(ValueError, match=r"there is no recipe file .*gone"):
        throughput.cell_of("gone.yaml", words)


def test_what_cannot_be_timed_is_named():
    line = refused("bench", *SMALL, "--methods", "wise_ft")
    assert "wise_ft combines finished cells" in line
    assert "nowhere/manifest.json: missing" in refused("bench", *SMALL, "--pack", "nowhere")


def test_a_plan_is_one_screen_for_gpus_and_this_machine(folder, capsys):
    words = ["plan", str(folder / "shapes.yaml"), f"runs={folder / 'none'}"]
    assert cli.main([*words, "--tflops", "100"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 30
    for text in (
        "A100",
        "H100",
        "yours",
        "CPU",
        "training: FT",
        "on 1, 8, 64 GPUs",
        "--gpus-per-job",
        "disk",
    ):
        assert text in shown, text
    assert [plan._range(hours) for hours in (100, 0.5, 1)] == [
        "80 to 120 h", "24 to 38 min", "48 min to 1.2 h"
    ]  # fmt: skip
    assert [plan._time(hours) for hours in (1, 0.5, 1e-3)] == ["1 h", "30 min", "3.6 s"]
    assert "argument --tflops: 0: give a number above 0" in refused(*words, "--tflops", "0")
