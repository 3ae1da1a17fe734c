"""Read users' weight files as state dicts. No other module reads them.

No code in a file ever runs.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
import warnings
import zipfile
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.model_files.descriptions import head_beside

State = dict[str, torch.Tensor]
MOST_BYTES = 1 << 38  # 256 GiB, three times the largest vision transformers
MOST_HEADER = 1 << 23  # bytes that list 80,000 tensors; a million take half a minute to parse
STATES = ("state_dict", "model")  # where checkpoints of training scripts keep weights
AVERAGES = ("state_dict_ema", "model_ema")  # and averages of the weights, which are not read
VISUAL, TEXT = "visual.", "logit_scale"  # tensors of open_clip's vision and text towers
OTHER_OBJECT = re.compile(r"GLOBAL (\S+) was not an allowed")  # in an error of torch.load
COMPILED = "_orig_mod."  # in names below a module that torch.compile wraps
MODEL = "model."  # prefix of a LightningModule's `self.model`
LIGHTNING = (MODEL, "net.")
ENCODER, CLIP_HEAD = "image_encoder.", "classification_head."  # in WiSE-FT's classifiers
log = logging.getLogger(__name__)


def weights_file(place: str) -> Path:
    """`model.weights.path` as a path. Raises ValueError if it is not a file, or too large."""
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"model.weights.path={place!r} is not a file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, too many for the weights of a model")
    return path


def load_model(path: Path) -> State:
    """The state dict of a model, under the engine's names.

    That of an exported CLIP model has the vision tower and the head in the file beside it. Others
    are as of `load_weights`, which see.
    """
    state, beside = load_weights(path), head_beside(path)
    if beside is None:
        return state
    head = {f"head.{name}": tensor for name, tensor in load_weights(beside).items()}
    if any(name.startswith(VISUAL) for name in state):
        return {name: t for name, t in state.items() if name.startswith(VISUAL)} | head
    projection, bias = state.pop("head.weight", None), state.pop("head.bias", None)
    if projection is None or bias is None or bias.any():
        raise ValueError(
            f"{path}: the last layer is not a projection without bias, as {beside} requires"
        )
    return state | {"fc_norm.linear.weight": projection} | head


def load_weights(path: Path) -> State:
    """The state dict in a safetensors file, or in a checkpoint of plain tensors.

    A checkpoint may contain it as `state_dict` or `model`; averages beside it are not read, and the
    log says so. Prefixes of DataParallel, torch.compile and Lightning are removed from names.
    Raises ValueError, naming the file, for other content.
    """
    if path.suffix != ".safetensors":
        return plain_tensors(path, str(path))
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MOST_HEADER:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: it has a header of {header:,} bytes, "
            f"and a model at most {MOST_HEADER:,}"
        )
    try:
        return _clean(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _clean(state: State) -> State:
    state = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    state = timm.models.clean_state_dict(state)
    if any(name.startswith(CLIP_HEAD) for name in state):
        return _classifier(state)
    for prefix in LIGHTNING:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return timm.models.clean_state_dict(state)


def _classifier(state: State) -> State:
    """A CLIP model with a head, as WiSE-FT's and model soups' programs nest it: open_clip's vision
    tower and the head. The text tower, which the head replaces, is left out."""
    made = {}
    for name, tensor in state.items():
        below = name.removeprefix(CLIP_HEAD)
        if below != name:
            made[f"head.{below}"] = tensor
        elif (below := name.removeprefix(ENCODER).removeprefix(MODEL)).startswith(VISUAL):
            made[below] = tensor
    return made


def plain_tensors(file: Path | io.BytesIO, source: str) -> State:
    """The state dict in a torch checkpoint; `source` names it in errors. As `load_weights`."""
    try:
        _refuse_compressed(file)
        # Training scripts also save their arguments; Namespace has no behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the error below says what is wrong
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the unpickler can raise any exception for damaged bytes
        if named := OTHER_OBJECT.search(str(error)):
            convert = (  # FILE: the reader puts in the path
                "import torch; torch.save(torch.load('FILE', weights_only=False)['state_dict'], "
                "'tensors.pt')"
            )
            raise ValueError(
                f"{source} contains more than plain tensors, which is never loaded because it can "
                f"run code ({named[1]}): if you trust the file's author, save its state dict "
                f'alone, as in python -c "{convert}"'
            ) from error
        raise ValueError(
            f"{source} is truncated, compressed, or no file of plain tensors: copy it, or save its "
            "state dict again, preferably as safetensors"
        ) from error
    for name in AVERAGES if isinstance(state, dict) else ():
        if name in state:
            log.warning(
                "%s also has %s, averages of the weights, which are not read: to use them, save "
                "them as a file of their own",
                source,
                name,
            )
    for key in STATES:
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{source} contains no state dict of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{source}: the name {name!r} of a tensor is not a string")
        if not _is_plain(tensor):
            raise ValueError(
                f"{source}: {name} is not a dense tensor of real numbers: save it as one"
            )
    return _clean(state)


def _refuse_compressed(file: Path | io.BytesIO) -> None:
    """Raise ValueError for a compressed file, which torch.save never writes and may be a bomb."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed")
    if isinstance(file, io.BytesIO):
        file.seek(0)  # torch reads from where zipfile stopped


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is numbers in memory; a small file can declare a shape of petabytes."""
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
