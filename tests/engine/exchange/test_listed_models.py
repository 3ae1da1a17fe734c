"""Checkpoints of other programs as a campaign's cells, in the forms that the programs write."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from engine import cli, models
from engine.campaigns.make_plan import make_plan
from engine.errors import RecipeError
from engine.exchange import listed_models, user_models
from engine.methods.beyond.checkpoint import state_of
from engine.model_files.checkpoint_table import HEADER, Line
from engine.recipe.overrides import parsed
from engine.recipe.resolve import recipe_of_sections
from engine.store.artifacts import Store
from helpers import campaigns, tiny_clip
from helpers.grids import CLASSES, CONV, SIZE, VIT

SETS = ("outline", "tinted", "few")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    """The fine-tuned models of the campaign as files of other programs, and their table."""
    place = tmp_path_factory.mktemp("theirs")
    rows = []
    for name in SETS:
        (cell,) = (finished / "store" / "cells").glob(f"fine_tune-{name}-*")
        state = load_file(cell / "weights.safetensors")
        head = {k: state.pop(f"head.{k}") for k in ("weight", "bias")}
        if name == "outline":  # Lightning's names in a state dict of torch.save
            whole = state | {f"head.{k}": t for k, t in head.items()}
            torch.save({"state_dict": {f"model.{k}": t for k, t in whole.items()}}, place / "a.pt")
            rows.append(["ft a", "fine_tune", name, "0", "a.pt", ""])
        elif name == "tinted":  # DataParallel's names, and the head in a file of its own
            torch.save({f"module.{k}": t for k, t in state.items()}, place / "b.pt")
            torch.save(head, place / "b-head.pt")
            rows.append(["ft b", "fine_tune", name, "0", "b.pt", "b-head.pt"])
        else:
            save_file(state | {f"head.{k}": t for k, t in head.items()}, place / "c.safetensors")
            rows.append(["ft c", "fine_tune", name, "0", "c.safetensors", ""])
    write(place, rows)
    return place


def write(place: Path, rows: list[list[str]]) -> Path:
    with (place / "checkpoints.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *rows])
    return place / "checkpoints.csv"


def test_a_folder_of_checkpoints_becomes_a_report(
    folder, finished, exported, tmp_path, monkeypatch
):
    """Without training, with the numbers of the campaign that trained them."""
    campaigns.in_this_process(monkeypatch)
    runs, file = tmp_path / "runs", folder / "shapes.yaml"
    words = [
        "campaign",
        str(file),
        f"runs={runs}",
        "--checkpoints",
        str(exported / "checkpoints.csv"),
    ]
    assert cli.main(words) == 0
    (report,) = runs.glob("shapes*/report")
    (trained,) = finished.glob("shapes*/report")
    ours, theirs = (campaigns.rows(place / "accuracy.csv") for place in (report, trained))
    key = ("method", "alpha", "downstream", "evaluated_on")
    known = {tuple(row[k] for k in key): float(row["accuracy_pct"]) for row in theirs}
    found = {tuple(row[k] for k in key): float(row["accuracy_pct"]) for row in ours}
    methods = {of for of, *_ in found}
    assert methods == {"pretrained", "fine_tune", "wise_ft"}, methods
    assert len(found) > 30, len(found)
    assert found == pytest.approx({k: v for k, v in known.items() if k[0] in methods}, abs=1e-6)
    trainings = {path.parent.name for path in (runs / "store").glob("cells/*/history.json")}
    assert all(name.startswith("linear_probe-upstream") for name in trainings), "only the head"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["ft d", "fine_tune", "few", "1", "a.pt", ""],
            r"no line of fine_tune on outline with see",
        ),
        (["ft d", "ewc", "few", "0", "a.pt", ""], r"no line of ewc on outline with seed 0: a camp"),
        (
            ["ft d", "fine_tune", "few", "0", "a.pt", ""],
            r"line 5: ft c and ft d are both fine_tune",
        ),
        (["ft d", "fine_tune", "few", "zero", "a.pt", ""], r"line 5: write name,method,downstream"),
        (["ft d", "ewc", "few", "0", "d.pt", ""], r"line 5: .*d\.pt is not a file"),
    ],
)
def test_a_table_that_is_no_grid_is_refused(folder, exported, tmp_path, line, message):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    table = tmp_path / "checkpoints.csv"
    with table.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(line)
    with pytest.raises(RecipeError, match=message):
        listed_models.overrides_of(str(folder / "shapes.yaml"), table, [])


def test_a_changed_checkpoint_is_another_campaign(folder, exported, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    file, table = str(folder / "shapes.yaml"), tmp_path / "checkpoints.csv"
    words = parsed([f"runs={tmp_path / 'runs'}"])
    given = listed_models.overrides_of(file, table, words)
    before = make_plan(file, given).place
    assert make_plan(file, given).place == before
    state = torch.load(tmp_path / "b-head.pt", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "b-head.pt")
    assert make_plan(file, given).place != before


@pytest.fixture
def context() -> Any:
    """What `state_of` reads of a cell's context: a model of five classes."""
    words = [f"model.arch={VIT}", f"model.image_size={SIZE}", "model.crop=1.0", "dataset.sets=[a]"]
    recipe = recipe_of_sections("file", "folder", parsed(words))
    return SimpleNamespace(recipe=recipe, sets=SimpleNamespace(classes=CLASSES))


def described(folder: Path, net: torch.nn.Module, classes: Sequence[str], size: int = SIZE) -> Path:
    """The folder that timm writes for the Hub; returns its weights."""
    config = {"input_size": [3, size, size], "crop_pct": 1.0}
    given = {"label_names": list(classes), "pretrained_cfg": config, "num_classes": len(classes)}
    timm.models.save_for_hf(net, folder, model_config=given, safe_serialization=True)
    return folder / "model.safetensors"


def test_a_hubs_folder_is_read_and_what_does_not_fit_is_refused(context, tmp_path):
    def line(file: Path, head: Path | None = None) -> Line:
        return Line("theirs", "fine_tune", "a", 0, file, head)

    net = timm.create_model(VIT, num_classes=5, img_size=SIZE)
    file = described(tmp_path / "hub", net, CLASSES)
    read = state_of(line(file), context)
    assert all(torch.equal(read[name], tensor) for name, tensor in net.state_dict().items())
    order = (*CLASSES[:3], CLASSES[4], CLASSES[3])
    wider = timm.create_model(VIT, num_classes=7, img_size=SIZE).state_dict()
    headless = {k: t for k, t in net.state_dict().items() if not k.startswith("head.")}
    other = timm.create_model(CONV, num_classes=5).state_dict()
    for name, state in {"wider": wider, "headless": headless, "other": other}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    torch.save({"state_dict": net}, tmp_path / "pickled.pt")
    save_file({"weight": torch.zeros(5, 3)}, tmp_path / "narrow.safetensors")
    plain = tmp_path / "headless.safetensors"
    for bad, message in (
        (line(described(tmp_path / "o", net, order)), "output 3 is the first that differs"),
        (line(described(tmp_path / "s", net, CLASSES, 64)), "says image_size 64, but the campaig"),
        (line(tmp_path / "wider.safetensors"), "has 7 outputs, but folder has 5 classes"),
        (line(plain), "has no head.weight: name a file of the head in the column head"),
        (line(tmp_path / "other.safetensors"), f"theirs: .*has no head.weight|{VIT}"),
        (line(tmp_path / "pickled.pt"), "more than plain tensors, which is never loaded"),
        (line(plain, tmp_path / "narrow.safetensors"), r"narrow.* has no `weight` of \[5, 64\]"),
    ):
        with pytest.raises(ValueError, match=message):
            state_of(bad, context)


@pytest.mark.parametrize("prefix", ["image_encoder.model.", "module.model.", "model."])
def test_a_classifier_of_wise_ft_or_of_model_soups_is_open_clips_tower_and_a_head(
    open_clip, tmp_path, prefix
):
    clip, size = tiny_clip.drawn(open_clip), {"generator": torch.Generator().manual_seed(1)}
    head = {"weight": torch.randn(5, 24, **size), "bias": torch.randn(5, **size)}
    outer = "module." if prefix.startswith("module.") else ""
    state = {f"{prefix}{name}": tensor for name, tensor in clip.state_dict().items()}
    state |= {f"{outer}classification_head.{name}": tensor for name, tensor in head.items()}
    torch.save(state, tmp_path / "theirs.pt")
    resolved = user_models.resolve(tiny_clip.ARCH, [])
    of_file = user_models.cell_of(resolved, Store(tmp_path / "store"), tmp_path / "theirs.pt")
    net = models.load_state(models.create(resolved.model, 5), of_file.state(), "theirs").eval()
    images = torch.randn(3, 3, SIZE, SIZE, **size)
    with torch.inference_mode():
        embedding = functional.normalize(clip.encode_image(images), dim=-1)
        expected = functional.linear(embedding, head["weight"], head["bias"])
        torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)
