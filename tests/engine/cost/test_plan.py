"""`rib plan` against what then runs: steps, images, predictions and bytes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import campaigns
import grids
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from engine import cli, recipe
from engine.commands import plan as command
from engine.cost import dry_run, estimate, shapes
from engine.cost.dry_run import Work
from engine.errors import RecipeError
from engine.evaluation.bank import Forward
from engine.grid import campaign
from engine.grid.campaign import Plan
from engine.machine.flops import flops
from engine.methods import heads

folder, grid = campaigns.folder, grids.grid
HEADERS = {"fine_tune": "FT", "ewc": "EWC", "lwf": "LwF", "lora": "LoRA", "visual_prompt": "VP"}
METHODS = """\
  visual_prompt: {}
  lora: {}
  ewc: {method: {fisher_images: 9, fisher_scale: mean}}
  lwf: {train: {epochs: 1, batch_size: 5}}
  lp_ft: {}
  soup: {}
  spd: {}
  lines: {}
  model_stock: {method: {members: [l2sp, lines]}}
  ties: {}
"""


@dataclass
class Ran:
    """A campaign that ran in this process, with a count of the images that its models saw."""

    plan: Plan
    runs: Path
    images: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of all cells; heads that are fitted take none."""
        histories = (self.runs / "store" / "cells").glob("*/history.json")
        return sum(json.loads(path.read_text())[-1].get("step", 0) for path in histories)

    @property
    def rows(self) -> int:
        parts = (self.runs / "store" / "predictions").glob("*/*.parquet")
        return sum(pq.read_metadata(path).num_rows for path in parts)

    def bytes(self, *kinds: str) -> int:
        places = [self.runs / "store" / kind for kind in kinds]
        tensors = [p for place in places for p in place.rglob("*.safetensors")]
        return sum(path.stat().st_size for path in tensors)


@pytest.fixture(scope="module")
def ran(folder: Path, grid: grids.Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    from engine.grid import jobs

    runs = tmp_path_factory.mktemp("planned")
    file = folder / "planned.yaml"
    file.write_text((folder / "shapes.yaml").read_text() + METHODS)
    plan = campaign.plan(str(file), [f"runs={runs}"], cores=1)
    finished = Ran(plan, runs)
    call = Forward.__call__

    def counted(self: Forward, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        finished.images += len(x)
        return call(self, model, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "__call__", counted)
        jobs.prepare(plan, grid.device)
        for column in plan.columns:
            jobs.column(plan, column, grid.device)
    yield finished


@pytest.mark.slow
def test_plan_tells_what_then_ran(ran: Ran) -> None:
    planned = estimate.of(ran.plan)
    assert planned.steps == ran.steps > 0
    assert planned.rows == ran.rows > 0
    through = [w.images for w in planned.work if w.kind in ("features", "evaluation")]
    assert sum(through) == ran.images
    assert {w.images for w in planned.work if w.kind == "fisher"} == {9}
    written = ran.bytes("cells", "weights", "fisher")
    assert written == pytest.approx(planned.disk["weights"], rel=0.05)  # headers of small files


@pytest.mark.slow
def test_greedy_soup_takes_no_more_than_planned(ran: Ran, folder: Path, grid: grids.Grid) -> None:
    from engine.grid import jobs

    file = folder / "greedy.yaml"
    file.write_text(Path(ran.plan.name).read_text() + "  greedy_soup: {}\n")
    plan = campaign.plan(str(file), ran.plan.overrides, cores=1)
    before = ran.rows
    for column in plan.columns:
        jobs.column(plan, column, grid.device)
    planned = estimate.of(plan)
    one_model = sum(w.rows for w in planned.work if w.job == dry_run.PREPARE)
    assert before < ran.rows <= planned.rows < ran.rows + one_model * len(plan.sets)
    assert "counted at their most" in command.text(planned, estimate.Device())


def test_checkpoints_need_room_while_a_training_goes_on(folder: Path) -> None:
    planned = estimate.of(plan_of(folder))
    assert planned.checkpoints == 2 * (1 + 1) * 4 * planned.parameters  # SGD with momentum
    assert "minutes goes on, " in command.text(planned, estimate.Device())
    without = estimate.of(plan_of(folder, "train.checkpoint_minutes=0"))
    assert "minutes goes on, " not in command.text(without, estimate.Device())


def plan_of(folder: Path, *overrides: str) -> Plan:
    return campaign.plan(str(folder / "shapes.yaml"), overrides, cores=1)


@pytest.mark.slow
def test_alphas_and_variants_change_what_is_evaluated(folder: Path, tmp_path: Path) -> None:
    words = f"runs={tmp_path}"
    canonical = estimate.of(plan_of(folder, words))
    paper = estimate.of(plan_of(folder, words, "method.variant=paper"))
    mixed = [
        next(m for m in e.cells if m.name.startswith("wise_ft-few-")) for e in (canonical, paper)
    ]
    assert [len(cell.entries) for cell in mixed] == [3, 1]
    # Both ends of a curve are models of their own: three alphas cost what one does.
    assert canonical.rows == paper.rows
    through = [sum(w.images for w in e.work if w.kind == "evaluation") for e in (canonical, paper)]
    assert through[1] > through[0]  # the paper's probe moves tokens and norms: no shared features


@pytest.mark.slow
def test_seeds_train_again_and_a_budget_thins_what_is_evaluated(
    folder: Path, tmp_path: Path
) -> None:
    once, twice, half = (
        estimate.of(plan_of(folder, f"runs={tmp_path}", *words))
        for words in ((), ("seeds=2",), ("evaluate.budget=0.5",))
    )
    assert twice.steps == 2 * once.steps
    pre = sum(w.rows for w in once.work if w.job == dry_run.PREPARE)
    assert 2 * (half.rows - pre) == pytest.approx(once.rows - pre, rel=0.03)
    assert half.steps == once.steps


def test_operations_are_those_of_the_formula() -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4, device="meta")
    x = torch.empty(5, 8, 10, 10, device="meta", requires_grad=True)
    forward = 2 * 5 * 16 * 10 * 10 * (8 // 4) * 9
    assert flops(lambda: conv(x)) == forward
    assert flops(lambda: conv(x).sum().backward()) == 3 * forward
    frozen = conv.requires_grad_(False)
    assert flops(lambda: frozen(x).sum().backward()) == 2 * forward


@pytest.mark.slow
def test_the_published_grid() -> None:
    planned = estimate.of(campaign.plan("imagenet_rib", ["runs=/nonexistent"], cores=1))
    assert planned.forward_flops == pytest.approx(35.2e9, rel=0.01)  # 17.6 G multiply-adds
    assert planned.parameters == 86_567_656
    per_image = {
        w.method: w.flops / w.images / planned.forward_flops
        for w in planned.work
        if w.kind == "training"
    }
    assert per_image["FT"] == pytest.approx(3, rel=0.01)
    assert per_image["VP"] == pytest.approx(2, rel=0.03)  # attention: twice
    assert 2 < per_image["LoRA"] < 2.5
    assert per_image["LP"] == pytest.approx(heads.EVALUATIONS * 4 * 768 * 1000 / 35.2e9, rel=0.01)
    steps = {w.job: w.steps for w in planned.work if w.method == "FT"}
    assert steps["imagenet_r"] == 10 * -(-30_000 // 64)
    assert steps["imagenet_a"] == 10 * -(-7_500 // 64)
    base = [w for w in planned.work if w.job == dry_run.PREPARE]
    assert sum(w.rows for w in base) == sum(planned.images.values())
    device = estimate.Device()
    hours = [shapes.hours([planned], shapes.columns([planned]), device, gpus) for gpus in (1, 8)]
    assert hours == [pytest.approx(6.0, abs=0.05), pytest.approx(1.1, abs=0.05)]
    column = [w for w in planned.work if w.job == "imagenet_r"]
    header = (recipe.ROOT / "campaigns" / "imagenet_rib.yaml").read_text()
    for method, title in HEADERS.items():
        (written,) = re.findall(rf" {method} (\d+\.\d)[ ,]", header)
        minutes = 60 * device.hours(w for w in column if w.method == title)
        assert float(written) == pytest.approx(minutes, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_s16_augreg_in1k", "vit_b32_sam_in1k", "resnet18"])
def test_the_hours_in_a_models_header(name: str) -> None:
    planned = estimate.of(campaign.plan("imagenet_rib", [f"model={name}", "runs=/no"], cores=1))
    text = (recipe.ROOT / "models" / f"{name}.yaml").read_text()
    ((on_one, on_eight),) = re.findall(r"one \| eight: (\S+) \| (\S+)\. ", text)
    graphs, device = shapes.columns([planned]), estimate.Device()
    hours = [shapes.hours([planned], graphs, device, gpus) for gpus in (1, 8)]
    assert [float(on_one), float(on_eight)] == [pytest.approx(h, abs=0.05) for h in hours]


@pytest.mark.slow
def test_the_grids_of_all_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "imagenet_rib_paper", "model=all", "runs=/nonexistent"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("variant paper") == 7
    together = shown.partition("all 7 models together, as one workflow")[2]
    # One grid after the other would take 32.9 hours on eight GPUs.
    assert re.search(r"columns  203, 28\.4, [\d.]+: a job trains", together), together
    assert "jobs       63, of columns" in together
    assert "packs of 3 transforms among it" in together


def test_hours_on_gpus() -> None:
    device = estimate.Device(tflops=100, mfu=0.5)
    work = Work("prepare", "training", 1, 50e12 * 3600)
    assert device.hours([work]) == pytest.approx(1)
    exact = dataclasses.replace(work, precision="fp32")
    assert device.hours([work, exact]) == pytest.approx(1 + 100 / 19.5)


@pytest.mark.parametrize(
    ("tflop", "unit", "time"),
    [(1.44e6, "hours", "2.5"), (12_000, "minutes", "1.25"), (40, "seconds", "0.25")],
)
def test_times_are_printed_in_a_unit_that_fits_them(
    folder: Path, tmp_path: Path, tflop: float, unit: str, time: str
) -> None:
    planned = estimate.of(plan_of(folder, f"runs={tmp_path}"))
    work = Work(dry_run.PREPARE, "training", 1, tflop * 1e12)
    planned, device = dataclasses.replace(planned, work=(work,)), estimate.Device(160, mfu=1)
    shown = command.text(planned, device)
    assert f"{unit:<11}on 1, 8, 64 GPUs\n  columns  {time}, {time}, {time}: a job" in shown, shown
    assert f"GPU-{unit}\n" in shown
    together = command.total([planned] * 2, device)
    assert f"  columns  {2 * float(time):g}, {time}, {time}: a job" in together, together


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(folder / "shapes.yaml"), f"runs={tmp_path}"]
    assert cli.main([*words, "train.precision=bf16", "--mfu", "0.25", "--tflops", "989"]) == 0
    out = capsys.readouterr().out
    assert (
        "at 25% of 989 TFLOP/s (bf16) and 19.5 TFLOP/s (fp32)," in out
        and "report's distances" in out
    )
    assert "jobs       5: what all share, 3 columns, the report" in out
    assert "cells      9: 6 trained, 3 mixed in 9 points; and 2 models that" in out
    assert not any(tmp_path.iterdir())  # nothing ran, nothing is written
    assert cli.main([*words, "--mfu", "1.5"]) == 2
    assert "--mfu must be above 0" in capsys.readouterr().err


def test_a_set_that_is_nowhere_is_named(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, f"runs={tmp_path}", f"dataset.root={tmp_path}/gone")
    with pytest.raises(ValueError, match=r"gone/upstream is not a folder"):
        estimate.of(plan)
    with pytest.raises(RecipeError, match="there is no"):
        campaign.plan("imagenet_rip", [], cores=1)


def test_published_sets_are_planned_with_their_classes() -> None:
    for words, count in ((), 113), (("dataset.objectnet=paper",), 105):
        labels = estimate.labels_of(recipe.load("imagenet_rib", ["runs=/no", *words]), "objectnet")
        assert len(labels) == 18_574 and len(np.unique(labels)) == count


@pytest.mark.slow
def test_encoded_sets_count_as_they_are(ran: Ran) -> None:
    resolved = recipe.load(ran.plan.name, ran.plan.overrides)
    assert np.bincount(estimate.labels_of(resolved, "few")).tolist() == [grids.COPIES] * 3
