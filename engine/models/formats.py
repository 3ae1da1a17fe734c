"""Foreign weight files as state dicts under timm's names; no other module reads them.

No code in a file is ever run.
"""

from __future__ import annotations

import argparse
import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

State = dict[str, torch.Tensor]
LIGHTNING = "model."  # where a LightningModule has its network as `self.model`


def load(path: Path) -> State:
    """The state dict in a safetensors file, or in a checkpoint of plain tensors.

    A checkpoint may hold it under `state_dict` or `model`, beside what training needs. Prefixes of
    names that DataParallel, torch.compile and Lightning add are removed. Raises ValueError naming
    the file where it holds anything else.
    """
    if path.suffix != ".safetensors":
        return plain_tensors(path, str(path))
    with _readable(path):
        return _clean(load_file(path))


def names(path: Path) -> set[str]:
    """Names of the tensors that `load` returns; of a safetensors file no tensor is read."""
    if path.suffix != ".safetensors":
        return set(load(path))
    with _readable(path), safe_open(path, framework="pt") as file:
        return set(_clean(dict.fromkeys(file.keys())))


def _clean(state: dict[str, Any]) -> dict[str, Any]:
    if all(name.startswith(LIGHTNING) for name in state):
        state = {name.removeprefix(LIGHTNING): tensor for name, tensor in state.items()}
    return timm.models.clean_state_dict(state)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or no safetensors file: {error}") from error


def plain_tensors(file: Path | io.BytesIO, source: str) -> State:
    """The state dict in a torch checkpoint; `source` names it in errors. Raises as `load`."""
    try:
        _refuse_compressed(file)
        # Training scripts save their arguments too; Namespace is a class without behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the error below says what is wrong
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the unpickler raises any exception for damaged bytes
        raise ValueError(
            f"{source} is cut, compressed, or holds more than plain tensors, which is never "
            "loaded; save the state dict alone, best as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{source} holds no state dict of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{source}: the name {name!r} of a tensor is no text")
        if what := _unusual(tensor):
            raise ValueError(f"{source}: {name} is {what}; save its values as a plain tensor")
    return _clean(state)


def _refuse_compressed(file: Path | io.BytesIO) -> None:
    """Raise ValueError for a compressed file, which torch.save never makes and may be a bomb."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed")
    if isinstance(file, io.BytesIO):
        file.seek(0)  # torch reads on from where zipfile stopped


def _unusual(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being plain numbers in memory; empty where nothing does."""
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return f"of the layout {tensor.layout}"
    if tensor.is_complex():
        return "of complex numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of the shape {list(tensor.shape)} and stores fewer values"
    return ""


def dinov2_onnx(data: bytes) -> State:
    """The DINOv2 ViT in an exported ONNX graph, under timm's names.

    The exporter keeps the names of vectors. Matrices have no names and are transposed; the
    operation that multiplies by a matrix tells which it is.
    """
    try:
        import onnx  # type: ignore[import-not-found]
        from onnx import numpy_helper  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("this model needs the onnx package: pip install 'onnx>=1.17'") from error
    graph = onnx.load_from_string(data).graph
    tensors = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
    }
    matrices = {
        node.name.strip("/").replace("/", ".").removesuffix(".MatMul"): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    embeddings = "backbone.embeddings."
    positions = [t for name, t in tensors.items() if name.startswith("onnx::Concat")]
    grid = [t for name, t in tensors.items() if name.startswith("onnx::Reshape")]
    state = {
        "cls_token": tensors[f"{embeddings}cls_token"],
        "pos_embed": torch.cat([positions[0], grid[0]], dim=1),
        "patch_embed.proj.weight": tensors[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    qkv = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    dense = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    layers = sum(name.endswith(".mlp.fc1") for name in matrices)
    for layer in range(layers):
        old, new = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        state |= {
            f"{new}attn.qkv.weight": torch.cat([matrices[old + name] for name in qkv]),
            f"{new}attn.qkv.bias": torch.cat([tensors[f"{old}{name}.bias"] for name in qkv]),
            f"{new}ls1.gamma": tensors[f"{old}layer_scale1.lambda1"],
            f"{new}ls2.gamma": tensors[f"{old}layer_scale2.lambda1"],
        }
        for name, exported in dense.items():
            state[f"{new}{name}.weight"] = matrices[old + exported]
            state[f"{new}{name}.bias"] = tensors[f"{old}{exported}.bias"]
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                state[f"{new}{norm}.{part}"] = tensors[f"{old}{norm}.{part}"]
    return state
