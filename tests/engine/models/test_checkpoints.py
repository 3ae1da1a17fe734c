"""Foreign weights: matched to timm's names, and never unpickled."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import same
from safetensors.torch import load_file

from engine import models
from engine.models import checkpoints, formats
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store import tensors
from engine.store.artifacts import Store


def model(path: Path | str = "", arch: str = "test_vit", match: str = "names") -> ModelRecipe:
    weights = WeightsRecipe(source="file", path=str(path), match=match)
    return ModelRecipe(name="mine", arch=arch, image_size=32, weights=weights)


def state(arch: str = "test_vit", classes: int = 5, size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return models.create(ModelRecipe(name="m", arch=arch, image_size=size), classes).state_dict()


def backbone(recipe: ModelRecipe, folder: Path) -> dict[str, torch.Tensor]:
    artifact = checkpoints.backbone(recipe, Store(folder / "store"), folder / "cache", seed=0)
    return load_file(artifact.file(tensors.WEIGHTS))


@pytest.mark.parametrize(
    ("arch", "source"),
    [("test_vit", "file"), ("test_efficientnet", "timm"), ("test_resnet", "pypi")],
)
def test_an_own_file_keeps_its_tensors_and_its_head(arch, source, tmp_path):
    """It stands in for a download, too."""
    expected, path = state(arch), tmp_path / "own.safetensors"
    tensors.save(expected, path)
    options = model(path, arch)
    weights = dataclasses.replace(options.weights, source=source)
    assert same(backbone(dataclasses.replace(options, weights=weights), tmp_path), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model._orig_mod."])
@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_checkpoints_as_training_scripts_write_them(wrapped, prefix, tmp_path):
    expected, path = state(), tmp_path / "own.pth"
    named = {prefix + name: tensor for name, tensor in expected.items()}
    options = argparse.Namespace(lr=0.1, opt="sgd")
    beside = {"epoch": 3, "args": options, "optimizer": {"state": {0: {"step": 7}}}}
    torch.save({wrapped: named, **beside} if wrapped else named, path)
    assert same(backbone(model(path), tmp_path), expected)
    tensors.save(named, path := tmp_path / "own.safetensors")
    assert same(backbone(model(path), tmp_path), expected)


def test_a_head_that_is_missing_is_made_and_positions_follow_the_image_size(tmp_path):
    stored = {k: v for k, v in state(size=64).items() if not k.startswith("head.")}
    tensors.save(stored, tmp_path / "own.safetensors")
    actual, expected = backbone(model(tmp_path / "own.safetensors"), tmp_path), state()
    assert actual.keys() == expected.keys()
    assert actual["pos_embed"].shape == expected["pos_embed"].shape
    alike = stored.keys() - {"pos_embed"}
    assert same({k: actual[k] for k in alike}, {k: stored[k] for k in alike})


def test_order_fits_tensors_of_other_names(tmp_path):
    expected = state("test_efficientnet")
    renamed = {f"layer.{i:03}": tensor for i, tensor in enumerate(expected.values())}
    torch.save(renamed, tmp_path / "own.pth")
    options = model(tmp_path / "own.pth", "test_efficientnet", "order")
    head = models.head_names(options)
    actual = backbone(options, tmp_path)
    assert same(actual, expected) and actual[head[1]].shape == (5,)
    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "short.pth")
    tensors.save(expected, tmp_path / "own.safetensors")
    for name, message in (
        ("short.pth", f"short.pth has {len(expected) - 1} tensors"),
        ("own.safetensors", "own.safetensors: safetensors files keep no order"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(model(tmp_path / name, "test_efficientnet", "order"), tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.weights\.path='.*gone\.pth' is not a file"):
        backbone(model(tmp_path / "gone.pth"), tmp_path)
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(b"\x08" * 50)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            backbone(model(tmp_path / name), tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth"):
        backbone(model(tmp_path / "list.pth"), tmp_path)


def test_damaged_bytes_of_a_checkpoint_name_the_file(tmp_path):
    path, random = tmp_path / "damaged.pth", np.random.default_rng(0)
    torch.save(state(), path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = []
    for _ in range(40):  # a bit in a number alone cannot be noticed
        damaged = whole.copy()
        damaged[random.integers(0, min(2000, len(whole)), 20)] = random.integers(0, 256, 20)
        path.write_bytes(damaged.tobytes())
        try:
            formats.load(path)
        except ValueError as error:
            refused.append(str(error))
    path.write_text("hello world")
    with pytest.raises(ValueError, match=r"damaged\.pth is cut, compressed, or holds more"):
        formats.load(path)
    assert len(refused) > 10 and all(str(path) in text for text in refused)


@pytest.mark.parametrize(
    "unusual",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
        lambda t: t.to("meta"),
        lambda t: t[:1, :1].clone().expand(10**9, 10**9),
        lambda t: t.to(torch.complex64),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's: kinds that it will drop or change
def test_tensors_that_are_no_plain_numbers_are_named(unusual, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({"state_dict": state() | {"norm.bias": unusual(torch.eye(5))}}, path)
    with pytest.raises(ValueError, match=r"odd\.pth: norm\.bias is no dense tensor"):
        formats.load(path)


def test_names_that_are_no_text_and_compressed_files_are_refused(tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({0: torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"odd\.pth: the name 0 of a tensor is no text"):
        formats.load(path)
    torch.save(state(), path)
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    with pytest.raises(ValueError, match=r"odd\.pth is cut, compressed, or holds more"):
        formats.load(path)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("plain", [False, True])
def test_malicious_checkpoint_is_refused_and_not_run(plain, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    if plain:
        path.write_bytes(pickle.dumps(Malicious(victim)))
    else:
        torch.save(state() | {"extra": Malicious(victim)}, path)
    with pytest.raises(ValueError, match=r"evil\.pth.*plain tensors"):
        backbone(model(path), tmp_path)
    assert not victim.exists()


def test_backbone_is_made_once_and_named_by_what_matters(tmp_path):
    tensors.save(state(), tmp_path / "own.safetensors")
    options = model(tmp_path / "own.safetensors")
    store = Store(tmp_path / "store")
    backbone = checkpoints.backbone(options, store, tmp_path, 0)
    renamed = dataclasses.replace(options, name="other")
    assert checkpoints.backbone(renamed, store, tmp_path, 7) == backbone
    pixels = dataclasses.replace(options, crop=0.7, crop_mode="squash", interpolation="nearest")
    assert checkpoints.backbone(pixels, store, tmp_path, 0) == backbone, "cells know them by packs"
    for changes in ({"mean": [0.1] * 3}, {"std": [0.2] * 3}, {"channels_last": True}):
        changed = dataclasses.replace(options, **changes)
        assert checkpoints.backbone(changed, store, tmp_path, 0) != backbone, (
            "packs do not tell these"
        )
    tensors.save(
        {name: tensor + 1 for name, tensor in state().items()}, tmp_path / "own.safetensors"
    )
    assert checkpoints.backbone(options, store, tmp_path, 0) != backbone, "another content"
    random = dataclasses.replace(options, weights=WeightsRecipe(source="random"))
    pair = [checkpoints.backbone(random, store, tmp_path, seed) for seed in (0, 1, 0)]
    assert pair[0] == pair[2] and pair[0].name != pair[1].name


def test_dinov2_graph_is_mapped_to_timms_names():
    onnx = pytest.importorskip("onnx", reason="the optional package that reads DINOv2's file")
    torch.manual_seed(0)
    arch = {"arch": "vit_small_patch14_dinov2", "image_size": 28}
    net = models.create(ModelRecipe(name="d", **arch), 5)
    expected = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    tensors, nodes = [], []
    for name, value in reversed(exported(expected).items()):  # whatever the order
        key = name if not name.endswith("/MatMul") else f"onnx::MatMul_{len(nodes)}"
        if key != name:
            nodes.append(onnx.helper.make_node("MatMul", ["x", key], ["y"], name=name))
        tensors.append(onnx.numpy_helper.from_array(value.numpy(), key))
    graph = onnx.helper.make_graph(nodes, "dino", [], [], initializer=tensors)
    data = onnx.helper.make_model(graph).SerializeToString()
    assert same(formats.dinov2_onnx(data), expected)


def exported(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the exporter writes: vectors by name, matrices transposed, by the node they serve."""
    top = "backbone.embeddings."
    written = {
        f"{top}cls_token": state["cls_token"],
        f"{top}patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        f"{top}patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "onnx::Concat_1": state["pos_embed"][:, :1].clone(),
        "onnx::Reshape_2": state["pos_embed"][:, 1:].clone(),
        "backbone.layernorm.weight": state["norm.weight"],
        "backbone.layernorm.bias": state["norm.bias"],
    }
    for i in range(len([k for k in state if k.endswith("attn.qkv.weight")])):
        old, new = f"blocks.{i}.", f"backbone.encoder.layer.{i}."
        parts = ("query", "key", "value")
        matrices = [*state[f"{old}attn.qkv.weight"].chunk(3), state[f"{old}attn.proj.weight"]]
        matrices += [state[f"{old}mlp.fc1.weight"], state[f"{old}mlp.fc2.weight"]]
        users = [*(f"attention/attention/{part}" for part in parts), "attention/output/dense"]
        for user, matrix in zip([*users, "mlp/fc1", "mlp/fc2"], matrices, strict=True):
            written[f"/backbone/encoder/layer.{i}/{user}/MatMul"] = matrix.T.contiguous()
        for part, bias in zip(parts, state[f"{old}attn.qkv.bias"].chunk(3), strict=True):
            written[f"{new}attention.attention.{part}.bias"] = bias.clone()
        written[f"{new}attention.output.dense.bias"] = state[f"{old}attn.proj.bias"]
        for number in (1, 2):
            written[f"{new}mlp.fc{number}.bias"] = state[f"{old}mlp.fc{number}.bias"]
            written[f"{new}layer_scale{number}.lambda1"] = state[f"{old}ls{number}.gamma"]
            for kind in ("weight", "bias"):
                written[f"{new}norm{number}.{kind}"] = state[f"{old}norm{number}.{kind}"]
    return written


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_inside_a_package_is_read_from_its_start(as_zip):
    state, file = {"weight": torch.arange(6.0).reshape(2, 3)}, io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=as_zip)
    read = formats.plain_tensors(io.BytesIO(file.getvalue()), "a package")
    assert torch.equal(read["weight"], state["weight"])
