"""Labels of the validation set from ImageNet's development kit."""

from __future__ import annotations

from pathlib import Path

import devkits
import pytest

from loaders.benchmarks import devkit

WNIDS = ("n01440764", "n01443537", "n02708093")


def test_numbers_become_wnids(tmp_path: Path) -> None:
    labels = [WNIDS[i] for i in (2, 0, 1, 1, 2, 0)]
    assert devkit.wnids(devkits.write(tmp_path / "kit.tar.gz", WNIDS, labels)) == labels


def test_what_is_no_kit_is_refused(tmp_path: Path) -> None:
    kit = devkits.write(tmp_path / "kit.tar.gz", WNIDS, WNIDS)
    kit.write_bytes(kit.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"kit\.tar\.gz is not ImageNet's development kit"):
        devkit.wnids(kit)
