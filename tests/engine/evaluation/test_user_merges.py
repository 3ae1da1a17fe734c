"""`rib merge`: files merged by the methods of campaigns, and what cannot be merged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from grids import CLASSES, CONV, SIZE, VIT, Grid, grid, images, labels, reference, same, weights
from safetensors.torch import load_file, save_file
from user_checkpoints import user_grid

from engine import cli
from engine.data.descriptions import DescribedModel
from engine.evaluation import bank, user_merges
from engine.store.cells import Cell

__all__ = ["grid", "user_grid"]
FEW = ("train.epochs=1", "train.batch_size=5", "train.freeze_batchnorm=false")
State = dict[str, torch.Tensor]


def merged(
    grid: Grid, method: str, cells: list[Cell], base: Cell | None = None, *words: str, **options
) -> DescribedModel:
    """The merge of cells, each given as its folder."""
    places = [cell.artifact.folder for cell in cells]
    start = base and base.artifact.folder
    words = (f"runs={grid.runs.parent / 'merges'}", "device=cpu", "threads=1", *words)
    return user_merges.merged(method, places, start, words, **options)


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_a_soup_of_files_is_the_campaigns_to_the_bit(grid, tmp_path, arch):
    """The benchmark's soup of four, by the command."""
    builder, cell = grid.build(*FEW, f"model.arch={arch}", "method=soup")
    (entry,) = cell.entries
    parents = {name: bank.stored_cell(builder.store, name) for name in entry.mix}
    (expected,) = bank.mixed([entry.mix], parents, builder.device)
    cells = [*(builder.cell(name) for name in ("lwf", "fine_tune", "ewc")), builder.base]
    assert {each.name for each in cells} == set(parents)
    *members, base = (str(each.artifact.folder) for each in cells)
    out = tmp_path / "out"
    command = ["merge", "soup", *members, "--base", base, "--out", str(out), f"runs={tmp_path}"]
    assert cli.main([*command, "device=cpu"]) == 0
    assert same(load_file(out / "model.safetensors"), expected)
    net = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert same(dict(net.state_dict()), expected)


@pytest.mark.parametrize(
    ("method", "members", "words"),
    [
        ("ties", ("fine_tune", "ewc", "lwf"), ("method.density=0.3",)),
        ("task_arithmetic", ("fine_tune", "ewc", "lwf"), ()),
        ("lines", ("fine_tune",), ("method.alpha=0.2",)),
        ("mono_soup", ("fine_tune",), ()),
        ("model_stock", ("fine_tune", "ewc"), ()),
    ],
)
def test_merged_files_are_the_campaigns_merged_cell(grid, method, members, words):
    extra = ("method.members=[fine_tune,ewc]", "method.seeds=1") if method == "model_stock" else ()
    builder, cell = grid.build(*FEW, f"method={method}", *words, *extra)
    cells = [builder.cell(name) for name in members]
    actual = merged(grid, method, cells, builder.base, *words)
    assert same(dict(actual.state), weights(cell)) and actual.mix == {}
    folders = [str(each.artifact.folder / "weights.safetensors") for each in (*cells, builder.base)]
    assert actual.title.endswith(f"of {', '.join(folders[:-1])} from {folders[-1]}")
    assert actual.description.classes == tuple(builder.sets.classes)


def test_wise_ft_of_files_is_the_weighted_mean(user_grid):
    a, b = (user_grid.folder / f"{name}.safetensors" for name in "AB")
    words = [f"model.image_size={SIZE}", f"runs={user_grid.runs}", "device=cpu"]
    actual = user_merges.merged(
        "wise_ft", [b], a, [*words, "method.alpha=0.3"], arch=VIT, classes=CLASSES
    )
    before, after = load_file(a), load_file(b)
    for name, tensor in actual.state.items():
        expected = 0.7 * before[name].double() + 0.3 * after[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    assert actual.mix == pytest.approx({str(a): 0.7, str(b): 0.3})


def greedy(states: dict[str, State], grid: Grid, name: str) -> dict[str, float]:
    """Wortsman et al. 2022b, recipe 1, with timm in float64."""
    index = np.arange(7 * len(CLASSES))
    x, y = images(grid, name, index), labels(grid, name, index)

    def right(members: list[str]) -> int:
        mean = {
            name: torch.stack([states[member][name].double() for member in members]).mean(0)
            for name in states[members[0]]
        }
        with torch.no_grad():
            return int((reference(mean)(x).argmax(1) == y).sum())

    ranked = sorted(states, key=lambda member: -right([member]))
    soup = ranked[:1]
    for member in ranked[1:]:
        if right([*soup, member]) >= right(soup):
            soup.append(member)
    return {member: 1 / len(soup) for member in soup}


def test_a_greedy_soup_is_chosen_on_the_folder(grid, user_grid):
    """Of a trained model, one near it, and one whose head is turned around."""
    words = ("method=fine_tune", "optimizer.lr=0.1", "train.epochs=4", "train.clip=1")
    tuned = weights(grid.build(*words)[1])
    other = load_file(user_grid.folder / "A.safetensors")
    states = {
        "turned": tuned | {name: -3 * tuned[name] for name in ("head.weight", "head.bias")},
        "near": {name: torch.lerp(tensor, other[name], 0.01) for name, tensor in tuned.items()},
        "tuned": tuned,
    }
    files = {name: user_grid.folder / f"{name}.safetensors" for name in states}
    for name, state in states.items():
        save_file(state, files[name])
    expected = greedy(states, grid, "outline")
    assert 1 < len(expected) < len(states), "some must be taken and some left"
    seen = [f"model.image_size={SIZE}", f"runs={user_grid.runs}", "device=cpu", "model.crop=1.0"]
    actual = user_merges.merged(
        "greedy_soup", list(files.values()), None, seen,
        holdout=grid.folder / "outline", arch=VIT, classes=CLASSES,
    )  # fmt: skip
    assert actual.mix == {str(files[name]): weight for name, weight in expected.items()}
    assert actual.title.startswith("Greedy soup of 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ewc A", r"ewc trains; only a method that makes models of finished ones"),
        ("wise_ft A", r"WiSE-FT starts from the pre-trained model: name its checkpoint by --base"),
        ("lines A B", r"LiNeS is made of 1 fine-tuned model and the one of --base, not of 2"),
        ("model_stock A --base B", r"Model Stock needs two models or more"),
        ("greedy_soup A B", r"Greedy soup is chosen on images: name a folder .* by --holdout"),
        ("soup A B --holdout outline", r"Soup chooses nothing: leave --holdout out"),
        ("soup A E", r"E.safetensors does not fit .*: blocks.0.norm1.weight is missing; give"),
        ("soup A B method.members=[A]", r"method.members: the checkpoints are the members"),
        ("soup A B method.alpha=1", r"unknown key 'method.alpha'"),
        ("sup A B", r"'sup'.*soup"),
    ],
)
def test_what_cannot_be_merged_is_refused(user_grid, words, message, monkeypatch, capsys):
    """Letters are checkpoints: A and B are alike, and E lacks a tensor."""
    monkeypatch.chdir(user_grid.folder)
    state = load_file("A.safetensors")
    del state["blocks.0.norm1.weight"]
    save_file(state, "E.safetensors")
    Path("classes.txt").write_text("\n".join(CLASSES))
    command = [f"{word}.safetensors" if word.isupper() else word for word in words.split()]
    command += ["--arch", VIT, "--classes", "classes.txt", f"model.image_size={SIZE}"]
    command += [f"runs={user_grid.runs}", "device=cpu", "--out", "out"]
    assert cli.main(["merge", *command]) == 2
    assert re.search(message, printed := capsys.readouterr().err), printed
    assert not Path("out").exists()


def test_a_model_with_an_input_prompt_is_refused_by_its_folder(grid):
    builder, _ = grid.build("method=fine_tune")
    prompted, tuned = builder.cell("visual_prompt"), builder.cell("fine_tune")
    with pytest.raises(ValueError, match=r"visual_prompt-outline-\w+ has an input prompt"):
        merged(grid, "soup", [tuned, prompted])
