"""Resident and Stream give the same batches."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_packs import COUNT, SHAPE, draw, make
from loaders import batches
from loaders.batches import Resident, Stream, free_in_groups, open_source
from loaders.pack import Pack


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> dict[str, Pack]:
    folder = tmp_path_factory.mktemp("packs")
    return {format: make(folder / format, format) for format in ("raw", "jpeg")}


def uneven(seed: int, epochs: int = 2) -> list[np.ndarray]:
    """Permutations cut at random places, empty batches and single samples among them."""
    rng = np.random.default_rng(seed)
    cuts = [np.sort(rng.integers(0, COUNT + 1, rng.integers(0, 9))) for _ in range(epochs)]
    return [part for cut in cuts for part in np.split(rng.permutation(COUNT), cut)]


def test_resident_is_the_pack(packs):
    source = Resident(packs["raw"])
    (batch,) = source.batches([np.array([5, 60, 5])])
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (3, 3, *SHAPE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([np.asarray(draw(seed)) for seed in (5, 60, 5)])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
    assert batch.rows.dtype == torch.int64 and batch.rows.tolist() == [5, 60, 5]
    (late,) = source.batches([np.arange(4)])
    source._pixels_NHWC.zero_()
    assert not late.images.any(), "gathered when they are read"
    source._pixels_NHWC.fill_(1)
    assert not late.images.any(), "and once"


def test_a_streams_thread_works_on_its_own_gpu(packs, monkeypatch):
    """A new thread is on GPU 0, which it would leave a context on."""
    devices = {}

    def reached(device: torch.device) -> None:
        raise InterruptedError(str(device))

    note = lambda device: devices.update({threading.get_ident(): device})  # noqa: E731
    monkeypatch.setattr(torch.cuda, "set_device", note)
    monkeypatch.setattr(torch.cuda, "Stream", reached)
    with pytest.raises(InterruptedError, match="cuda:3"):
        next(Stream(packs["raw"], "cuda:3").batches([np.arange(4)]))
    assert list(devices.values()) == [torch.device("cuda:3")]
    assert threading.get_ident() not in devices


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), workers=st.integers(1, 4))
@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_stream_is_resident(packs, format, seed, workers):
    positions = uneven(seed)
    streamed = Stream(packs[format], workers=workers).batches(iter(positions))
    expected = Resident(packs[format]).batches(positions)
    for batch, other, index in zip(streamed, expected, positions, strict=True):
        assert np.array_equal(batch.index, index) and np.array_equal(other.index, index)
        assert torch.equal(batch.images, other.images)


@pytest.mark.slow
def test_a_stuck_reader_is_named_and_does_not_hold_up_the_exit(packs):
    script = (
        "import sys, threading, numpy; from loaders import batches, pack; batches.TIMEOUT_S = 0.1; "
        "source = batches.Stream(pack.Pack.open(sys.argv[1])); "
        "pack.Pack.read = lambda self, index, out: threading.Event().wait(); "
        "list(source.batches([numpy.arange(3)]))"
    )
    command = [sys.executable, "-c", script, str(packs["raw"].folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    assert (
        "TimeoutError: " in process.stderr and "images.beton: no batch in 0.1 s" in process.stderr
    )


def test_open_source_chooses_by_memory(packs, monkeypatch, caplog):
    pack = packs["jpeg"]
    caplog.set_level(logging.INFO)
    assert isinstance(open_source(pack), Resident)
    assert isinstance(open_source(pack, mode="stream"), Stream)
    nbytes = COUNT * SHAPE[0] * SHAPE[1] * 3
    monkeypatch.setattr(batches, "free_memory", lambda device: 2 * nbytes)
    assert isinstance(open_source(pack), Stream)
    assert isinstance(open_source(pack, mode="resident"), Resident)
    assert "tiny: streamed on cpu" in caplog.text


def group(folder: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    """A memory control group as the kernel shows it."""
    names, prefix = ("memory.max", "memory.current"), ""
    if version == 1:
        names, prefix = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cached}\n")


def test_memory_is_what_the_processs_own_groups_leave(tmp_path):
    listed, mount = tmp_path / "cgroup", tmp_path / "mount"
    assert free_in_groups(listed, mount) == float("inf")
    listed.write_text("0::/slurm/job_7/step_0\n")
    assert free_in_groups(listed, mount) == float("inf")
    group(mount / "slurm" / "job_7", "5000", 2000, 500)  # a step may use what its job has left
    group(mount / "slurm" / "job_7" / "step_0", "max", 1000, 0)
    group(mount / "slurm" / "other", "10", 10, 0)
    assert free_in_groups(listed, mount) == 3500
    listed.write_text("0::/host/path/of/a/container\n")
    group(mount, "1", 1, 0)  # where a container sees its own group
    assert free_in_groups(listed, mount) == 0
    listed.write_text("3:cpuset,cpu:/a\n2:memory:/a/b\n")
    group(mount / "memory" / "a", "9000", 1000, 200, version=1)
    group(mount / "memory" / "a" / "b", str(2**63 - 4096), 500, 0, version=1)
    assert free_in_groups(listed, mount) == 8200
