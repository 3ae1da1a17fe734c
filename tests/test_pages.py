"""Memory in huge pages: zeros of the right shapes, which overlap nowhere and are given back."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import pages

SHAPES = [(700, 1000), (3, 5), (0,), (), (8, 4, 3, 3), (1 << 16,), (1,)]
HAS_THEM = Path("/sys/kernel/mm/transparent_hugepage").exists() and hasattr(mmap, "MADV_HUGEPAGE")


def tensors(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Nothing of them is zero; with four dimensions they are stored channels last."""
    ones = [torch.ones(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    return [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in ones]


def flags(address: int) -> set[str]:
    """What the kernel notes of the mapping that holds an address, if any (proc(5), VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            start, end = (int(address, 16) for address in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    return set()


@pytest.mark.parametrize("shapes", [[], SHAPES[1:3], SHAPES])
def test_zeros_are_like_the_tensors_and_overlap_nowhere(shapes):
    given = tensors(shapes)
    zeros = pages.foreach_zeros_like(given)
    for tensor, zero in zip(given, zeros, strict=True):
        assert zero.shape == tensor.shape and zero.stride() == tensor.stride()
        assert zero.dtype == torch.float32 and not zero.requires_grad and not zero.any()
        assert zero.data_ptr() % 64 == 0
    for number, zero in enumerate(zeros, start=1):
        zero.fill_(number)
    for number, zero in enumerate(zeros, start=1):
        assert (zero == number).all()


def test_other_devices_are_left_to_torch():
    (zero,) = pages.foreach_zeros_like([torch.empty(1 << 20, device="meta")])
    assert zero.device.type == "meta"


@pytest.mark.skipif(not HAS_THEM, reason="needs transparent huge pages")
def test_large_tensors_ask_for_huge_pages_and_give_them_back():
    zero = pages.zeros_like(torch.empty(1 << 20))
    assert "hg" in flags(zero.data_ptr())
    assert zero.untyped_storage().nbytes() % pages._HUGE == 0
    part = zero[5:6]
    address = part.data_ptr()
    del zero
    assert part.item() == 0 and "hg" in flags(address)
    del part
    assert "hg" not in flags(address)


@pytest.mark.parametrize("missing", ["the name", "in the kernel"])
def test_without_huge_pages_zeros_are_zeros(missing, monkeypatch):
    if missing == "the name":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:

        class Refused(mmap.mmap):
            def madvise(self, *_: int) -> None:
                raise OSError(22, "Invalid argument")

        monkeypatch.setattr(mmap, "mmap", Refused)
    zeros = pages.foreach_zeros_like(tensors(SHAPES))
    assert [tuple(zero.shape) for zero in zeros] == SHAPES
    assert not any(zero.any() for zero in zeros)
