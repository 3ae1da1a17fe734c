"""Tables of tensors: one kernel launch for all tensors of a model, however many and small.

A table has one row per parameter and one column per role (theta, gradient, ...). The kernel
receives the addresses, and each of its programs works on one block of one parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.launch import jit, tl

BLOCK, WARPS = 1024, 4

Row = list[Any]  # tensors, or None for an absent role
Columns = Mapping[str, Sequence[Tensor] | None]


def rows(columns: Columns) -> list[Row]:
    """Returns the flat tensors of each parameter, in the order of the columns.

    columns: "theta" and other roles, with one tensor per parameter: fp32, contiguous, shaped like
    theta, all on one device. A column of None gives None in each row. Raises ValueError, naming the
    role, for tensors that do not fit.
    """
    thetas = columns["theta"]
    assert thetas is not None
    given = {name: column for name, column in columns.items() if column is not None}
    for name, column in given.items():
        check(name, column, thetas)
    flat = [
        [None] * len(thetas) if column is None else [tensor.view(-1) for tensor in column]
        for column in columns.values()
    ]
    return [list(row) for row in zip(*flat, strict=True)]


def check(name: str, column: Sequence[Tensor], thetas: Sequence[Tensor]) -> None:
    """Raises ValueError, naming the role, for tensors that do not fit their parameters."""
    if len(column) != len(thetas):
        raise ValueError(f"{name}: got {len(column)} tensors for {len(thetas)} parameters")
    for tensor, theta in zip(column, thetas, strict=True):
        _check(name, tensor, theta, thetas[0].device)


def _check(name: str, tensor: Tensor, theta: Tensor, device: torch.device) -> None:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} must be float32, not {tensor.dtype}")
    if tensor.shape != theta.shape or tensor.device != theta.device:
        raise ValueError(
            f"{name} is {list(tensor.shape)} on {tensor.device}, but theta is "
            f"{list(theta.shape)} on {theta.device}"
        )
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, but the first theta is on {device}: "
            "step the parameters of each device in a separate call"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous, and an in-place step cannot use a copy")


@dataclass(frozen=True)
class Table:
    """The arguments of a kernel for a table of tensors.

    arguments: the kernel's first arguments. options: its constants and launch
    options. blocks: number of programs.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    blocks: int

    @staticmethod
    def of(rows: Sequence[Row]) -> Table:
        """rows: at least one row of `rows`; each begins with theta."""
        device = rows[0][0].device
        layout = _layout(tuple(row[0].numel() for row in rows), device)
        roles = zip(*rows, strict=True)
        addresses = tuple(0 if t is None else t.data_ptr() for role in roles for t in role)
        blocks = len(layout[0])
        aligned = all(address % 16 == 0 for address in addresses)
        options = {"ALIGNED": aligned, "BLOCK": BLOCK, "num_warps": WARPS}
        return Table((_pointers(addresses, device), *layout, len(rows)), options, blocks)


@functools.lru_cache(maxsize=16)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Which program works on which block.

    Returns owners int32 [programs], each program's parameter; firsts int32 [T], each parameter's
    first program; and sizes int64 [T].
    """
    blocks = -(-np.array(sizes) // BLOCK)
    owners = np.repeat(np.arange(len(sizes)), blocks).astype(np.int32)
    firsts = (np.cumsum(blocks) - blocks).astype(np.int32)
    arrays = owners, firsts, np.array(sizes)
    return tuple(to_device(torch.from_numpy(array), device) for array in arrays)


@functools.lru_cache(maxsize=16)
def _pointers(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """Cached: gradients mostly keep their addresses between steps, so nothing is copied."""
    return to_device(torch.tensor(addresses, dtype=torch.int64), device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device without blocking the host.

    torch does not reuse the pinned memory until the copy is done, so a later call cannot overwrite
    it.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@jit
def tensor_at(pointers, count, role: tl.constexpr, number, ALIGNED: tl.constexpr):
    """The fp32 tensor of parameter `number` in the column `role`."""
    start = tl.load(pointers + role * count + number).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@jit
def place(owners, firsts, sizes, BLOCK: tl.constexpr):
    """The number of the program's parameter, its first element there, and how many are left."""
    number = tl.load(owners + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + number)).to(tl.int64) * BLOCK
    return number, start, tl.load(sizes + number) - start
