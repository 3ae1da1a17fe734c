"""`rib merge`: files merged by the methods of campaigns, and what cannot be merged."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from engine import cli
from engine.evaluation import bank
from engine.exchange import user_merges, user_models
from engine.recipe.overrides import parsed
from helpers.evaluations import State, average, by_timm
from helpers.grids import CLASSES, CONV, SIZE, VIT, Grid, same, weights

FEW = ("train.epochs=1", "train.batch_size=5", "train.freeze_batchnorm=false")


@pytest.mark.parametrize(
    ("method", "members", "words"),
    [
        ("soup", ("lwf", "fine_tune", "ewc"), ()),
        ("soup", ("lwf", "fine_tune", "ewc"), (f"model.arch={CONV}",)),
        ("wise_ft", ("fine_tune",), ("method.alpha=0.3",)),
        ("ties", ("fine_tune", "ewc", "lwf"), ("method.density=0.3",)),
        ("task_arithmetic", ("fine_tune", "ewc", "lwf"), ()),
        ("lines", ("fine_tune",), ("method.alpha=0.2",)),
        ("mono_soup", ("fine_tune",), ()),
        ("iso_c", ("fine_tune", "ewc", "lwf"), ()),
        ("model_stock", ("fine_tune", "ewc"), ()),
    ],
)
def test_merged_files_are_the_campaigns_to_the_bit(grid, tmp_path, method, members, words):
    """By the command; timm loads what it writes."""
    extra = ("method.members=[fine_tune,ewc]", "method.seeds=1") if method == "model_stock" else ()
    builder, cell = grid.build(*FEW, f"method={method}", *words, *extra)
    (mix,) = (entry.mix for entry in cell.entries if entry.headline)
    parents = {name: bank.stored_cell(builder.store, name) for name in mix}
    (expected,) = bank.mixed([mix], parents, builder.device)
    cells = [*map(builder.cell, members), builder.base]
    *folders, base = (str(each.artifact.folder) for each in cells)
    out = tmp_path / "out"
    command = ["merge", method, *folders, "--base", base, "--out", str(out), f"runs={tmp_path}"]
    of_method = [word for word in words if word.startswith("method")]
    assert cli.main([*command, "device=cpu", *of_method]) == 0
    assert same(load_file(out / "model.safetensors"), expected)
    net = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert same(dict(net.state_dict()), expected)
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == list(builder.sets.classes)
    files = {each.name: str(each.artifact.folder / "weights.safetensors") for each in cells}
    weights = {files[name]: weight for name, weight in mix.items() if name in files}
    assert config["made_of"]["cells"] == weights
    *tuned, pre = files.values()
    from_base = f" of {', '.join(tuned)} from {pre}"
    assert config["made_of"]["row"].endswith(from_base) == (not weights)


def greedy(states: dict[str, State], grid: Grid, name: str) -> dict[str, float]:
    """Wortsman et al. 2022b, recipe 1, with timm in float64."""

    def right(members: list[str]) -> int:
        mean = average([states[member] for member in members], [1 / len(members)] * len(members))
        logits, truth = by_timm(grid, name, mean)
        return int((logits.argmax(1) == truth).sum())

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
        "greedy_soup", list(files.values()), None, parsed(seen),
        holdout=grid.folder / "outline", arch=VIT, classes=CLASSES,
    )  # fmt: skip
    assert actual.mix == {str(files[name]): weight for name, weight in expected.items()}
    assert actual.title.startswith("Greedy soup of 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ewc A", r"ewc trains. Methods that merge finished models"),
        ("wise_ft A", r"WiSE-FT starts from the pretrained model: give its checkpoint with --base"),
        ("lines A B", r"LiNeS takes 1 fine-tuned model and --base, not 2"),
        ("greedy_soup A B", r"Greedy soup is chosen on images: give a folder .* with --holdout"),
        ("wise_ft_tuned A --base B", r"tuned\) is chosen on images: give .* with --holdout"),
        ("soup A B --holdout outline", r"Soup makes no choice: leave --holdout out"),
        ("soup A E", r"E.safetensors does not fit .*: blocks.0.norm1.weight is missing: give"),
    ],
)
def test_what_cannot_be_merged_is_refused(user_grid, words, message, monkeypatch, capsys):
    """Letters are checkpoints: A and B are alike, and E lacks a tensor."""
    monkeypatch.chdir(user_grid.folder)
    state = load_file("A.safetensors")
    del state["blocks.0.norm1.weight"]
    save_file(state, "E.safetensors")
    Path("classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    command = [f"{word}.safetensors" if word.isupper() else word for word in words.split()]
    command += ["--arch", VIT, "--classes", "classes.txt", f"model.image_size={SIZE}"]
    command += [f"runs={user_grid.runs}", "device=cpu", "--out", "out"]
    assert cli.main(["merge", *command]) == 2
    assert re.search(message, printed := capsys.readouterr().err), printed
    assert not Path("out").exists()


def test_a_model_with_an_input_prompt_is_refused_by_its_folder(grid):
    builder = grid.builder()
    places = [builder.cell(name).artifact.folder for name in ("fine_tune", "visual_prompt")]
    words = [f"runs={grid.runs.parent / 'merges'}"]
    with pytest.raises(ValueError, match=r"visual_prompt-outline-\w+ has an input prompt"):
        user_merges.merged("soup", places, None, parsed(words))
    resolved, files, classes = user_models.described(places, None, parsed(words))
    with pytest.raises(ValueError, match=r"visual_prompt-outline-\w+ has an input prompt"):
        user_models.evaluate(resolved, files, {}, grid.device, classes=classes, alphas=[0.5])
