"""What a campaign will cost, by counts that a reader can repeat."""

import dataclasses
import inspect
import itertools
import time
from unittest import mock

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.campaigns.plan import Plan
from engine.cost import estimate, flops, rates, work
from engine.cost.estimate import Device, Estimate
from engine.cost.flops import elements_of_image, of_image
from engine.cost.work import Work
from helpers.campaigns import plan_of

IMAGES = {"upstream": 35, "outline": 35, "tinted": 35, "few": 21}


def estimated(plan: Plan) -> Estimate:
    """Without the second that timing the model takes."""
    with mock.patch.object(flops, "forward_tflops", lambda *_: 1.0):
        return estimate.campaign_cost(plan.recipes, len(plan.rows))


@pytest.fixture(scope="module")
def plan(folder) -> Plan:
    return plan_of(folder / "shapes.yaml", f"runs={folder / 'none'}")


@pytest.fixture(scope="module")
def counted(plan) -> Estimate:
    return estimated(plan)


def test_training_and_evaluation_are_images_times_passes(plan, counted):
    """FT: an image forward and backward; LP: features alone; WiSE-FT: its three mixes."""
    assert counted.images == IMAGES
    everywhere = sum(IMAGES.values())
    held_out = sum(round(0.25 * count) for count in IMAGES.values())
    for column, parts in zip(plan.columns, counted.columns, strict=True):
        start, traces, training, probe, *evaluations = work.in_a_job(parts)
        assert traces.gpu_s == 2 * rates.TRACE_S and traces.core_s == 0
        images = 2 * round(0.75 * IMAGES[column.downstream])
        assert start.core_s == start.gpu_s == rates.START_S
        assert (training.name, training.images) == ("training: FT", images)
        assert training.operations == 3 * images * counted.network.forward
        assert training.batches == images / 12 and training.trained == counted.network.parameters
        assert probe.name == "training: LP" and probe.operations == 0 == probe.images
        assert (training.cell, probe.cell, len(evaluations)) == (0, 1, 1 + 3)
        for each in evaluations:
            assert each.images == held_out, "the recipe evaluates the hold-out"
            assert each.operations == each.images * counted.network.forward
    (base,) = (part for part in counted.shared if part.name == "pretrained model")
    assert base.images == everywhere
    (graphs,) = (part for part in counted.shared if part.name == "graphs are compiled")
    assert graphs.gpu_s == 2 * rates.GRAPH_S, "of evaluation and of FT"
    assert graphs.core_s == 0, "a CPU compiles nothing"


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["dataset.shots=2", "downstreams=[few]"], 2 * 3),
        (["dataset.train_images=10", "dataset.fraction=0.5"], 5),
    ],
)
def test_a_column_of_a_part_trains_on_as_many(folder, words, images):
    part = estimated(plan_of(folder / "shapes.yaml", f"runs={folder / 'none'}", *words))
    assert {parts[0].images for parts in part.columns} == {2 * images}


@pytest.mark.parametrize(
    ("rows", "trainings", "evaluations"),
    [
        ("fine_tune,model_stock", 2, 2),
        ("model_stock", 2, 1),
        ("lp_ft", 2, 1),
        ("ensemble", 3, 2),
    ],
)
def test_models_that_are_only_averaged_are_not_evaluated(
    folder, tmp_path, rows, trainings, evaluations
):
    """Model Stock trains FT with two seeds; an ensemble needs its members' outputs."""
    more = "{model_stock: {}, lp_ft: {}, ensemble: {method: {members: [fine_tune, lp_ft]}}}"
    campaign = tmp_path / "more.yaml"
    campaign.write_text(f"extends: {folder / 'shapes.yaml'}\nmethods: {more}\n")
    part = estimated(plan_of(campaign, f"methods=[{rows}]", f"runs={folder / 'none'}"))
    names = [each.name for each in part.columns[0]]
    assert sum(name.startswith("training: ") for name in names) == trainings
    assert names.count("evaluation") == evaluations


def test_operations_are_those_of_one_forward_pass(counted):
    net = timm.create_model("test_vit", num_classes=5, img_size=32).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    # The attention of the meta device counts two small products more.
    assert counted.network.forward == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert counted.network.parameters == sum(p.numel() for p in net.parameters())


def test_public_trainings_are_predicted_within_a_tenth():
    """NVIDIA's images a second: NeMo's ViT-g/14 on an A100 and an H100, BioNeMo's ViT-S/16."""
    for name, published in (
        ("vit_giant_patch14_224", {"A100": 86.6, "H100": 178.5}),
        ("vit_small_patch16_224", {"H100": 7716}),
    ):
        with torch.device("meta"):
            net = timm.create_model(name)
        elements, operations = elements_of_image(net, 224), of_image(net, 224, backward=True)
        traffic = rates.traffic(elements, compiled=True, training=True)
        for chip, images_s in published.items():
            seconds = rates.seconds(rates.CHIPS[chip], operations, traffic)
            assert 1 / seconds == pytest.approx(images_s, rel=0.1), (name, chip)


def test_ranks_share_images_and_neither_the_hosts_time_nor_the_exchange(monkeypatch):
    """A step of ten images, which take a second each; the host 2 s, and 3 s to exchange."""
    monkeypatch.setattr(rates, "STEP_S", 2.0)
    step = Work("any", 10, 1e13, batches=1.0, trained=1_500_000_000)
    device = Device("any", bf16=1.0, fp32=1.0, link=2.0)
    assert [3600 * device.hours([step], gpus) for gpus in (1, 2, 10)] == pytest.approx(
        [10, 10 / 2 + 3, 1 + 2 * 9 / 10 * 3]
    )
    far = dataclasses.replace(device, link=1e9)
    assert 3600 * far.hours([step], 10) == pytest.approx(2), "the host is what is slow"
    evaluation = dataclasses.replace(step, trained=0, batches=20.0)
    assert 3600 * far.hours([evaluation], 4) == pytest.approx(10 / 4), "batches are divided"


def test_precision_follows_the_device():
    device = Device("any", bf16=4.0, fp32=1.0)
    auto, fp32 = (Work("any", 1, 3600e12, fp32=fp32) for fp32 in (False, True))
    assert device.hours([auto]) == 0.25 and device.hours([auto, fp32]) == 1.25
    assert estimate.cpu(2).hours([auto]) == estimate.cpu(2).hours([fp32])


def test_sets_of_the_same_photos_are_also_judged_on_those_that_were_seen(folder):
    """The drawings of the three sets have the same names, so they count as the same photos."""
    words = [f"runs={folder / 'none'}", "dataset.holdout=0.4", "dataset.holdout_by=source"]
    words += ["dataset.sources=names"]
    for seen in (True, False):
        more = f"evaluate.seen={str(seen).lower()}"
        plan = plan_of(folder / "shapes.yaml", *words, more)
        for column, parts in zip(plan.columns, estimated(plan).columns, strict=True):
            held_out = {name: round(0.4 * count) for name, count in IMAGES.items()}
            judged = sum(held_out.values())
            others = [name for name in IMAGES if name != column.downstream]
            judged += seen * sum(IMAGES[name] - held_out[name] for name in others)
            assert parts[-1].images == judged and parts[-4:] == [parts[-1]] * 4


def test_imagenets_derived_sets_show_the_photos_of_its_validation_set():
    words = ["methods=[fine_tune]", "downstreams=[imagenet_cartoon,imagenet_sketch]"]
    derived, natural = estimated(plan_of("imagenet_rib_disjoint", *words)).columns
    more = derived[-1].images - natural[-1].images
    assert more == 3 * 40_000  # val, Drawing and the sample of C


def test_a_core_is_timed_by_a_product_and_the_models_share(plan, counted, monkeypatch):
    """Every pass and product seem to take a quarter of a second. The model's counts are not stored,
    so it is timed too, and the campaign reaches a part of its rate."""
    now = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: next(now) / 4)
    for module, name in (
        (rates, "product_tflops"),
        (flops, "product_tflops"),
        (flops, "forward_tflops"),
    ):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))  # measured anew
    core = estimate.this_core(work.network(plan.recipe, 5))
    assert core.fp32 == pytest.approx(
        rates.CORE_SHARE * 64 * counted.network.forward / 0.25 / 1e12, rel=1e-3
    )
    assert core.name == "1 CPU core" and core.cores == 1
    known = work.network(plan_of("emoji").recipe, 5)
    share = rates.CORE_SHARE * known.core_share
    assert estimate.this_core(known).fp32 == pytest.approx(share * 2 * 64**4 / 0.25 / 1e12)
