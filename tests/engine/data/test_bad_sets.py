"""Sets that have no distances are refused by name: by kernels, the matrix and the command."""

from __future__ import annotations

import math

import campaigns
import grids
import pytest
import torch

from engine import cli
from engine.evaluation import features
from engine.machine import ranks
from engine.otdd.problems import Labelled, Options
from engine.otdd.solve import matrix
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import debiased, transport

CLASSES = 3
folder, grid = campaigns.folder, grids.grid


def labelled(n: int, shift: float = 0.0) -> Labelled:
    generator = torch.Generator().manual_seed(n)
    return Labelled(torch.randn(n, 4, generator=generator) + shift, torch.arange(n) % CLASSES)


NEAR, FAR = labelled(30), labelled(25, 1.0)


def spoiled(value: float) -> Labelled:
    features = FAR.features.clone()
    features[3, 1] = value
    return Labelled(features, FAR.labels)


@pytest.mark.parametrize(
    ("far", "message"),
    [
        (spoiled(math.nan), "far: features: sample 3 holds NaN or infinity"),
        (spoiled(-math.inf), "far: features: sample 3 holds NaN or infinity"),
        (Labelled(FAR.features[:, :3], FAR.labels), "far has 3 features a sample, but near has 4"),
        (Labelled(FAR.features, FAR.labels + 1), r"far: .* label 3, outside \[0, 3\)"),
        (Labelled(FAR.features, FAR.labels - 1), r"far: .* label -1, outside \[0, 3\)"),
        (Labelled(FAR.features, FAR.labels[:9]), r"far: labels of features must be int64 \[25\]"),
        (Labelled(FAR.features, FAR.labels.float()), "far: labels of features must be int64"),
        (Labelled(FAR.features[:1], FAR.labels[:1]), "far: one sample; a distance needs at least"),
        (Labelled(FAR.features[:0], FAR.labels[:0]), "far: features must be .* at least one"),
        (Labelled(FAR.features.long(), FAR.labels), "far: features must be a floating"),
        (Labelled(1e25 * FAR.features, FAR.labels), "far: .*largest variance of a class is .*e"),
        (Labelled(1e-25 * FAR.features, FAR.labels), "far: .*largest variance of a class is .*e-"),
        (Labelled(0 * FAR.features, FAR.labels), "far to far: all costs are zero"),
    ],
)
def test_a_matrix_of_it_is_refused_by_name(far, message):
    for label_distance in ("gaussian", "none"):
        if "variance" in message and label_distance == "none":
            message = "far: the mean cost is .*outside"
        if "far: the mean" in message and far.features.abs().max() < 1:
            continue  # beside the other set's costs it is a point
        with pytest.raises(ValueError, match=message):
            matrix({"near": NEAR, "far": far}, CLASSES, Options(label_distance=label_distance))


def test_one_set_has_no_distances():
    for sets in ({}, {"near": NEAR}):
        with pytest.raises(ValueError, match="two or more sets"):
            matrix(sets, CLASSES, Options())


@pytest.mark.slow
def test_classes_of_one_image_and_of_none_are_no_error():
    single = Labelled(FAR.features[:2], FAR.labels[:2])
    for options in (Options(), Options(exact=True), Options(label_distance="means")):
        distances = matrix({"near": NEAR, "far": single}, CLASSES, options)
        assert distances.values[0, 1] > 0
    of_singles = matrix(
        {"a": Labelled(NEAR.features[:2], NEAR.labels[:2]), "b": single}, 9, Options()
    )
    assert of_singles.values[0, 1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam_x": -1.0}, "lam_x=-1.0 must be a number of at least 0"),
        ({"lam_y": math.nan}, "lam_y=nan must be a number of at least 0"),
        ({"lam_x": 0.0, "lam_y": 0.0}, "make all costs zero"),
        ({"lam_x": 0.0, "label_distance": "none"}, "make all costs zero"),
        ({"eps": -1.0}, "eps=-1.0 must be a number above 0"),
        ({"eps": math.inf}, "eps=inf must be a number above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
    ],
)
def test_options_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_class_gaussians_keep_what_products_need():
    for precision in (torch.int64, torch.bfloat16):
        with pytest.raises(ValueError, match=r"must be torch.float32 or torch.float64"):
            class_gaussians(*NEAR, CLASSES, precision=precision)
    for scale in (1e12, 1e-12, 1e200):
        with pytest.raises(ValueError, match="largest variance of a class"):
            class_gaussians(scale * NEAR.features.double(), NEAR.labels, CLASSES)
    table = [
        bures_squared(*(class_gaussians(s * x, y, CLASSES) for x, y in (NEAR, FAR)))
        for s in (1.0, 1e9, 1e-9)
    ]
    torch.testing.assert_close(table[1] / 1e18, table[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(table[2] * 1e18, table[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", [torch.ones(3), torch.ones(1, 3, 3)])
def test_a_table_has_two_sides(table):
    labels = {"labels_x": NEAR.labels, "labels_y": FAR.labels}
    with pytest.raises(ValueError, match=r"table must be \[classes of x, classes of y\]"):
        GroundCost(NEAR.features, FAR.features, table=table, **labels)


def test_what_no_iteration_can_solve_is_no_number():
    cost = GroundCost(NEAR.features, FAR.features)
    solution = transport(cost, eps=1e-300)
    assert math.isnan(solution.value) and not solution.converged
    assert math.isnan(debiased(solution, solution, solution).value)
    with pytest.raises(ValueError, match="more than a million times the mean cost"):
        transport(cost, eps=1e300)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "0"], "eps must be positive and finite, not 0.0"),
        (["--eps", "nan"], "eps must be positive and finite, not nan"),
        (["--tolerance", "-1"], "tolerance must be positive"),
        (["--bracket", "0"], "bracket must be positive"),
        (["--samples", "1"], "samples=1: a distance needs two samples of each set"),
        (["--sample-seed", "-3"], "must not be negative, but is -3"),
        (["--lam-x", "-1"], "lam_x=-1.0 must be a number of at least 0"),
        (["--label-distance", "mean"], "did you mean 'means'?"),
        (["--exact", "--bracket", "0.1"], "give exact or bracket"),
    ],
)
def test_the_command_refuses_options_by_name(words, message, capsys):
    assert cli.main(["distance", *words]) == 2
    assert message in (printed := capsys.readouterr().err) and printed.startswith("error: ")


def test_one_set_is_refused_before_a_model_is_made(folder, capsys, tmp_path):
    words = ["distance", "outline", "--campaign", str(folder / "shapes.yaml"), f"runs={tmp_path}"]
    assert cli.main(words) == 2
    assert "two or more distinct sets, got ['outline']" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_refuses_sets_by_name(folder, grid, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "stop", lambda: None)
    words = ["distance", "outline", "few", "--campaign", str(folder / "shapes.yaml")]
    words += ["--samples", "20", f"runs={tmp_path}"]
    stored, changes = features.stored, []

    def changed(run, cell, labelled, **options):
        features_ND = stored(run, cell, labelled, **options).clone()
        return changes[-1](features_ND) if labelled.name == "few" else features_ND

    monkeypatch.setattr(features, "stored", changed)
    for change, message in (
        (lambda x: x.index_fill_(1, torch.tensor([2]), torch.nan), "few: features: sample 0 holds"),
        (lambda x: x[:, 1:], "few has 63 features a sample, but outline has 64"),
        (lambda x: x[:1], "few: labels of features must be int64 [1]"),
    ):
        changes.append(change)
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "distance").glob("*"))
    assert cli.main([*words[:2], *words[3:]]) == 2
    assert "two or more distinct sets, got ['outline']" in capsys.readouterr().err
