"""Heads in closed form on datasets with classes of their own, beside numpy's least squares."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from engine import cli
from engine.campaigns import record
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.data.splits import split
from engine.evaluation import bank
from engine.evaluation.ridge import gram, solved
from engine.exchange import own_sets
from engine.recipe.overrides import parsed
from engine.recipe.schema import RIDGE
from engine.store.artifacts import Store
from helpers import campaigns
from helpers.grids import VIT, reference


def least_squares(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and bias [C] of the penalised problem, as one least-squares problem."""
    centre = x.mean(0)
    penalty = np.sqrt(RIDGE * x.var(0).mean() * len(x)) * np.eye(x.shape[1])
    rows = np.concatenate([x - centre, penalty])
    target = np.eye(classes)[y]
    targets = np.concatenate([target - target.mean(0), np.zeros((x.shape[1], classes))])
    weight = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return weight, target.mean(0) - centre @ weight


@pytest.mark.parametrize(("images", "width"), [(200, 7), (9, 40)])  # fewer images than features
def test_a_head_is_that_of_least_squares(images, width):
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(images, width)) @ rng.normal(size=(width, width))
    y = rng.integers(0, 4, images)
    y_NC = torch.nn.functional.one_hot(torch.from_numpy(y), 4)
    parts = torch.from_numpy(x).split(8), y_NC.split(8)
    weight, bias = solved(sum(gram(*part) for part in zip(*parts, strict=True)), 4)
    expected = least_squares(x, y, 4)
    np.testing.assert_allclose(weight.T.numpy(), expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected[1], rtol=1e-4, atol=1e-5)


def test_features_that_do_not_vary_leave_the_classes_frequencies():
    y_NC = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1]), 2)
    weight, bias = solved(gram(torch.full((4, 3), 2.0), y_NC), 2)
    assert not weight.any() and bias.tolist() == [0.25, 0.75]


@pytest.fixture
def flowers(folder: Path, tmp_path: Path) -> Path:
    """The folder of a campaign with the probe set `flowers`: upstream's images in two classes."""
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    for name, of in (("lily", ("disc", "ring")), ("rose", ("bar", "cross"))):
        (images / "flowers" / name).mkdir(parents=True)
        for shape in of:
            for file in (images / "upstream" / shape).iterdir():
                shutil.copy(file, images / "flowers" / name / f"{shape}{file.name}")
    return tmp_path


def check(run: record.FinishedCampaign, images: Path) -> dict[str, float]:
    """Stored predictions beside timm in float64 and least squares; the accuracy by method."""
    files = sorted((images / "flowers").glob("*/*.png"))
    y = np.array([["lily", "rose"].index(file.parent.name) for file in files])
    train, holdout = split(y, 0.25, 0)
    config = timm.get_pretrained_cfg(VIT)
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    x = torch.from_numpy((pixels - config.mean) / config.std).permute(0, 3, 1, 2)
    accuracy = {}
    pairs = zip(run.record.evaluations, run.evaluations, strict=True)
    for of_record, row in (pair for pair in pairs if pair[0].role == "probe"):
        mix, store = run.mix(of_record), Store(run.place.store)
        states = {name: bank.stored_cell(store, name).state() for name in mix}
        names = next(iter(states.values()))
        mean = {k: sum(mix[name] * state[k] for name, state in states.items()) for k in names}
        net = reference(mean)
        with torch.no_grad():
            features = net.forward_head(net.forward_features(x), pre_logits=True).numpy()
        weight, bias = least_squares(features[train], y[train], 2)
        stored = pq.read_table(row.path)
        assert stored["index"].to_pylist() == holdout.tolist()
        assert stored["label"].to_pylist() == y[holdout].tolist()
        top1 = (features[holdout] @ weight + bias).argmax(1)
        assert stored["top1"].to_pylist() == top1.tolist(), row
        accuracy[row.method] = 100 * (top1 == y[holdout]).mean()
    return accuracy


def test_forgetting_is_measured_on_classes_of_their_own(grid, folder, flowers):
    words = [f"dataset.root={flowers}/images", "downstreams=[outline]"]
    words += ["methods=[fine_tune,linear_probe,wise_ft]", f"runs={flowers}/runs"]
    plain = campaigns.run(folder, *words)
    without = (plain / "accuracy.csv").read_bytes()
    assert "On other label spaces" not in (plain / "index.html").read_text()
    report = campaigns.run(folder, *words, "dataset.probe_sets=[flowers]")
    assert (report / "accuracy.csv").read_bytes() == without, "RI's numbers do not change"

    table = pandas.read_csv(report / "tables/probe-sets.csv").set_index("method")
    methods = ["fine_tune", "linear_probe", "wise_ft"]
    assert table.index.tolist() == methods and set(table.evaluated_on) == {"flowers"}
    assert table.loc["linear_probe", ["change_pts", "change_low", "change_high"]].tolist() == [
        0,
        0,
        0,
    ]
    assert (table.change_low <= table.change_pts).all() and (
        table.change_pts <= table.change_high
    ).all()
    assert "On other label spaces" in (report / "index.html").read_text()
    numbers = json.loads((report / "results.json").read_text())["numbers"]
    changes = {n["method"]: n["value"] for n in numbers if n["quantity"] == "probe_change"}
    assert changes == pytest.approx(dict(zip(methods, table.change_pts, strict=True)))
    place = next((report.parent / "plans").iterdir())
    finished = record.read_record(PlanFolder(place))
    with pytest.raises(ValueError, match="flowers is a dataset of the campaign"):
        own_sets.evaluate(finished, {"flowers": flowers / "images/few"}, grid.device)
    out = str(flowers / "published")
    assert cli.main(["publish", str(report.parent), "--out", out]) == 0
    assert cli.main(["audit", out]) == 0
    accuracy = check(finished, flowers / "images")
    for method, change in changes.items():
        assert change == pytest.approx(accuracy[method] - accuracy["pretrained"])


def test_a_plan_without_probe_sets_keeps_its_name(folder, tmp_path):
    name = make_plan(str(folder / "shapes.yaml"), parsed([f"runs={tmp_path}"])).place.name
    words = [f"runs={tmp_path}", "dataset.probe_sets=[flowers]"]
    assert make_plan(str(folder / "shapes.yaml"), parsed(words)).place.name != name
