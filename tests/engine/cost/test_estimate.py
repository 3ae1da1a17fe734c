"""What a campaign will cost, by counts that a reader can repeat."""

import dataclasses
import itertools
import time

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.campaigns import estimate
from engine.campaigns.estimate import Device, Part
from engine.campaigns.plan import make_plan
from engine.machine import rates
from engine.recipe import parsed

IMAGES = {"upstream": 35, "outline": 35, "tinted": 35, "few": 21}


@pytest.fixture(scope="module")
def counted(folder) -> estimate.Estimate:
    return estimate.of(make_plan(str(folder / "shapes.yaml"), parsed([f"runs={folder / 'none'}"])))


def test_training_and_evaluation_are_images_times_passes(counted):
    """FT: an image forward and backward; LP: features alone; WiSE-FT: its three mixes."""
    assert counted.images == IMAGES
    everywhere = sum(IMAGES.values())
    held_out = sum(round(0.25 * count) for count in IMAGES.values())
    for column, parts in zip(counted.plan.columns, counted.columns, strict=True):
        start, training, probe, evaluation = parts
        images = 2 * round(0.75 * IMAGES[column.downstream])
        assert start.starts == 1
        assert (training.name, training.images) == ("training: FT", images)
        assert training.operations == 3 * images * counted.forward
        assert training.batches == images / 12 and training.exchanged == 4 * counted.parameters
        assert probe.name == "training: LP" and probe.operations == 0 == probe.images
        assert evaluation.images == (1 + 3) * held_out, "the recipe evaluates the hold-out"
        assert evaluation.operations == evaluation.images * counted.forward
    (base,) = (part for part in counted.shared if part.name == "pretrained model")
    assert base.images == everywhere
    (graphs,) = (part.graphs for part in counted.shared if part.graphs)
    assert graphs == 2, "of evaluation and of FT"


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["dataset.shots=2", "downstreams=[few]"], 2 * 3),
        (["dataset.train_images=10", "dataset.portion=0.5"], 5),
    ],
)
def test_a_column_of_a_part_trains_on_as_many(folder, words, images):
    words = [f"runs={folder / 'none'}", *words]
    part = estimate.of(make_plan(str(folder / "shapes.yaml"), parsed(words)))
    assert {parts[1].images for parts in part.columns} == {2 * images}


def test_operations_are_those_of_one_forward_pass(counted):
    net = timm.create_model("test_vit", num_classes=5, img_size=32).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    # The attention of the meta device counts two small products more.
    assert counted.forward == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert counted.parameters == sum(p.numel() for p in net.parameters())


def test_rows_add_up_to_the_time_on_one_gpu(counted):
    for device in (estimate.gpu("A100"), estimate.users_gpu(500.0)):
        (distances,) = counted.distances
        rows = [
            counted.distances_hours(device) if distances in parts else device.hours(parts)
            for parts in counted.by_name().values()
        ]
        assert counted.hours(device, 1) == pytest.approx(sum(rows))


def test_gpus_take_columns_and_then_share_them(counted):
    device = Device("any", 1e-9, 1e-9)
    ends, apart = device.hours(counted.shared), counted.distances_hours(device)
    first, second, third = (device.hours(column) for column in counted.columns)
    assert counted.hours(device, 1) == pytest.approx(ends + first + second + third + apart)
    assert counted.hours(device, 2) == pytest.approx(
        ends + min(max(first + third, second), max(first, second + third))
    ), "the distances are short, and end before the columns"
    assert counted.hours(device, 3) == pytest.approx(ends + max(first, second, third))
    assert [counted.idle(gpus) for gpus in (1, 2, 3, 4, 8)] == [0, 0, 0, 1, 2]
    on_cores = counted.hours_on_cores(estimate.cpu(1, 1e-9), 2)
    core = estimate.cpu(1, 1e-9)
    shared, first, second, third = map(core.hours, (counted.shared, *counted.columns))
    assert on_cores == pytest.approx(
        shared + min(max(first + third, second), max(first, second + third))
    )
    two = counted.hours(device, 6) - ends
    assert two == pytest.approx(max(device.hours(c, 2) for c in counted.columns)) and two < first


def test_a_job_has_no_more_gpus_than_a_node_and_its_ranks_divide_the_batch(counted):
    """Three columns, batches of 12."""
    assert [counted.gpus_of_a_job(gpus) for gpus in (1, 3, 6, 15, 17, 18, 64)] == [
        1, 1, 2, 4, 4, 6, 6
    ]  # fmt: skip
    assert counted.idle(64) == 64 - 3 * 6


def test_ranks_share_images_and_neither_the_hosts_time_nor_the_exchange():
    """A step of ten images, which take a second each; the host 2 s, and 3 s to exchange."""
    step = Part("any", 10, 1e13, batches=1.0, exchanged=6e9)
    device = Device("any", bf16=1.0, fp32=1.0, link=2.0, step_s=2.0)
    assert device.seconds(step) == 10
    assert device.seconds(step, 2) == 10 / 2 + 3
    assert device.seconds(step, 10) == 1 + 2 * 9 / 10 * 3
    far = dataclasses.replace(device, link=1e9)
    assert far.seconds(step, 10) == 2, "the host is what is slow"
    evaluation = dataclasses.replace(step, exchanged=0.0, batches=20.0)
    assert far.seconds(evaluation, 4) == 10 / 4, "batches are divided"


def test_precision_follows_the_device():
    device = Device("any", bf16=4.0, fp32=1.0)
    auto, fp32 = (Part("any", 1, 3600e12, kind) for kind in ("auto", "fp32"))
    assert device.hours([auto]) == 0.25 and device.hours([auto, fp32]) == 1.25
    assert estimate.cpu(2).hours([auto]) == estimate.cpu(2).hours([fp32])


def test_sets_of_the_same_photos_are_also_judged_on_those_that_were_seen(folder):
    """The drawings of the three sets have the same names, so they count as the same photos."""
    words = [f"runs={folder / 'none'}", "dataset.holdout=0.4"]
    words += ["dataset.holdout_by=source", "dataset.sources=names"]
    for seen in (True, False):
        more = f"evaluate.seen={str(seen).lower()}"
        made = estimate.of(make_plan(str(folder / "shapes.yaml"), parsed([*words, more])))
        for column, parts in zip(made.plan.columns, made.columns, strict=True):
            held_out = {name: round(0.4 * count) for name, count in IMAGES.items()}
            judged = sum(held_out.values())
            others = [name for name in IMAGES if name != column.downstream]
            judged += seen * sum(IMAGES[name] - held_out[name] for name in others)
            assert parts[-1].images == (1 + 3) * judged


def test_imagenets_derived_sets_show_the_photos_of_its_validation_set():
    words = ["methods=[fine_tune]", "downstreams=[imagenet_cartoon,imagenet_sketch]"]
    derived, natural = estimate.of(make_plan("imagenet_rib_disjoint", parsed(words))).columns
    more = derived[-1].images - natural[-1].images
    assert more == 3 * 40_000  # val, Drawing and the sample of C


def test_a_core_is_timed_by_the_plans_own_model(counted, monkeypatch):
    """Every pass seems to take a quarter of a second; the campaign reaches a part of its rate."""
    now = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: next(now) / 4)
    core = estimate.this_core(counted.plan.recipe)
    assert core.fp32 == pytest.approx(
        rates.CORE_SHARE * 64 * counted.forward / 0.25 / 1e12, rel=1e-3
    )
    assert core.name == "1 CPU core" and core.cores == 1


def test_the_demos_time_on_two_cores():
    """What it took on two cores of an AMD EPYC, without the probe (docs/demo.md)."""
    demo = estimate.of(make_plan("emoji", parsed(["probe=0"])))
    seconds = 3600 * demo.hours_on_cores(estimate.cpu(1), 2)
    # Then, distances ran after the columns, on both cores.
    one, two = (demo.distances_hours(estimate.cpu(cores)) for cores in (1, 2))
    seconds -= 3600 * (one - two)
    assert 0.75 * 200 < seconds < 1.25 * 233
