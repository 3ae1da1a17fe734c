"""Foreign weights: matched to timm's names, and never unpickled."""

import argparse
import dataclasses
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from engine import models
from engine.model_files.weights import load_weights, plain_tensors
from engine.models import pretrained
from engine.models.sources.pypi import dinov2_onnx
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store import tensors
from engine.store.artifacts import Store
from helpers.grids import same
from loaders.files.durable import file_hash


def model(path: Path, arch: str = "test_vit", source: str = "file", **options: str) -> ModelRecipe:
    weights = WeightsRecipe(source=source, path=str(path), **options)
    return ModelRecipe(name="mine", arch=arch, image_size=32, weights=weights)


def state(arch: str = "test_vit", classes: int = 5, size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return models.create(ModelRecipe(name="m", arch=arch, image_size=size), classes).state_dict()


def backbone(recipe: ModelRecipe, folder: Path) -> dict[str, torch.Tensor]:
    artifact = pretrained.backbone(recipe, Store(folder / "store"), folder / "cache", seed=0)
    return load_file(artifact.file(tensors.WEIGHTS))


@pytest.mark.parametrize(
    ("arch", "source"),
    [("test_vit", "file"), ("test_efficientnet", "timm"), ("test_resnet", "pypi")],
)
def test_an_own_file_keeps_its_tensors_and_its_head(arch, source, tmp_path):
    """It stands in for a download, too."""
    expected, path = state(arch), tmp_path / "own.safetensors"
    tensors.save(expected, path)
    assert same(backbone(model(path, arch, source), tmp_path), expected)


@pytest.mark.parametrize(
    ("wrapped", "prefix"),
    [
        ("", ""),
        ("state_dict", "module."),
        ("model", "_orig_mod.module."),
        ("", "model._orig_mod."),
        ("state_dict", "net._orig_mod."),
    ],
)
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
    options = model(tmp_path / "own.pth", "test_efficientnet", match="order")
    assert same(backbone(options, tmp_path), expected)
    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "short.pth")
    tensors.save(expected, tmp_path / "own.safetensors")
    for name, message in (
        ("gone.pth", r"model\.weights\.path='.*gone\.pth' is not a file"),
        ("short.pth", f"short.pth has {len(expected) - 1} tensors"),
        ("own.safetensors", "own.safetensors: safetensors files keep no order"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(model(tmp_path / name, "test_efficientnet", match="order"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"\x08" * 50, "is truncated or not"),
        (
            "x.safetensors",
            (1 << 24).to_bytes(8, "little"),
            "and a model at most",
        ),
        ("x.pth", [1, 2], "contains no state dict of tensors"),
        ("x.pth", {0: torch.ones(2)}, "the name 0 of a tensor is not a string"),
    ],
)
def test_what_is_no_state_dict_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        backbone(model(path), tmp_path)


def test_a_compressed_file_which_may_be_a_bomb_is_refused(tmp_path):
    torch.save(state(), path := tmp_path / "odd.pth")
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    with pytest.raises(ValueError, match=r"odd\.pth is truncated, compressed, or no"):
        load_weights(path)


def test_a_checkpoint_of_objects_is_refused_with_a_line_that_converts_it(tmp_path, monkeypatch):
    torch.save({"state_dict": state(), "net": torch.nn.Identity()}, path := tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth .*\(torch\.nn\S+Identity\)") as caught:
        load_weights(path)
    line = str(caught.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", line.replace("FILE", str(path))], check=True)
    assert same(load_weights(tmp_path / "tensors.pt"), state())


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
            load_weights(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10 and all(str(path) in text for text in refused)


@pytest.mark.parametrize(
    "unusual",
    [
        torch.Tensor.to_sparse,
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
    with pytest.raises(ValueError, match=r"odd\.pth: norm\.bias is not a dense tensor"):
        load_weights(path)


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
    tensors.save(state(), path := tmp_path / "own.safetensors")

    def name(seed: int = 0, **changes: Any) -> str:
        options = dataclasses.replace(model(path), **changes)
        return pretrained.backbone(options, Store(tmp_path / "store"), tmp_path, seed).name

    usual = name()
    assert name(seed=7, name="other") == usual
    pixels = {"crop": 0.7, "crop_mode": "squash", "interpolation": "nearest"}
    assert name(**pixels) == usual, "cells know these by packs"
    others = [name(mean=[0.1] * 3), name(std=[0.2] * 3), name(channels_last=True)]
    drawn = [name(seed, weights=WeightsRecipe(source="random")) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2]
    tensors.save({k: tensor + 1 for k, tensor in state().items()}, path)
    assert len({usual, *others, *drawn, name()}) == 1 + 3 + 2 + 1


def test_the_checksum_of_a_recipe_is_checked(tmp_path):
    tensors.save(state(), path := tmp_path / "own.safetensors")
    backbone(model(path, sha256=file_hash(path)), tmp_path)
    backbone(model(path, sha256="0", package="a"), tmp_path)  # the package's, which is not read
    with pytest.raises(ValueError, match=r"own\.safetensors has the SHA-256 .* not model\.weights"):
        backbone(model(path, sha256="0"), tmp_path)
    with pytest.raises(ValueError, match="not to weights from random"):
        unread = WeightsRecipe(source="random", sha256="0")
        backbone(dataclasses.replace(model(path), weights=unread), tmp_path)


# timm's names of a ViT's tensors, by the names of vectors and of the nodes that use matrices.
EXPORTED = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "backbone.layernorm.": "norm.",
    **{f"backbone.encoder.layer.0.norm{i}.": f"blocks.0.norm{i}." for i in (1, 2)},
    **{f"backbone.encoder.layer.0.layer_scale{i}.lambda1": f"blocks.0.ls{i}.gamma" for i in (1, 2)},
    **{f"backbone.encoder.layer.0.mlp.fc{i}.": f"blocks.0.mlp.fc{i}." for i in (1, 2)},
    "backbone.encoder.layer.0.attention.output.dense.": "blocks.0.attn.proj.",
}


def test_dinov2_graph_is_mapped_to_timms_names():
    """The exporter names vectors; matrices are transposed, and known by the node they serve."""
    onnx = pytest.importorskip("onnx", reason="the optional package that reads DINOv2's file")
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=28, depth=1)
    expected = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    positions = expected["pos_embed"]
    written = {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:]}
    for exported, timms in EXPORTED.items():
        of_layer = {k.removeprefix(timms): v for k, v in expected.items() if k.startswith(timms)}
        written |= {exported + kind: tensor for kind, tensor in of_layer.items()}
    for kind in ("weight", "bias"):
        parts = expected[f"blocks.0.attn.qkv.{kind}"].chunk(3)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            written[f"backbone.encoder.layer.0.attention.attention.{name}.{kind}"] = part
    tensors, nodes = [], []
    for name, value in reversed(written.items()):  # whatever the order
        if value.ndim == 2:
            user = f"/{name.removesuffix('.weight').replace('.', '/')}/MatMul"
            name, value = f"onnx::MatMul_{len(nodes)}", value.T
            nodes.append(onnx.helper.make_node("MatMul", ["x", name], ["y"], name=user))
        tensors.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
    graph = onnx.helper.make_graph(nodes, "dino", [], [], initializer=tensors)
    data = onnx.helper.make_model(graph).SerializeToString()
    assert same(dinov2_onnx(data), expected)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_inside_a_package_is_read_from_its_start(as_zip):
    state, file = {"weight": torch.arange(6.0).reshape(2, 3)}, io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=as_zip)
    read = plain_tensors(io.BytesIO(file.getvalue()), "a package")
    assert torch.equal(read["weight"], state["weight"])
