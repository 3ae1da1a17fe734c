"""ImageNet's development kit with a few classes, numbered in another order than their wnids."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from tarballs import tarball

TOP = "ILSVRC2012_devkit_t12"


def write(path: Path, wnids: Sequence[str], labels: Sequence[str]) -> Path:
    """wnids: all classes. labels: the wnid of each validation image, in order."""
    number = {wnid: i for i, wnid in enumerate(reversed(wnids), start=1)}
    nodes = [*number.items(), ("n00001740", len(wnids) + 1)]  # the last is a node above classes
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    table = np.empty((len(nodes), 1), dtype=kind)
    for row, (wnid, place) in enumerate(nodes):
        table[row, 0] = (np.uint16(place), wnid, np.uint8(place > len(wnids)))
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": table}, do_compression=True)
    members = {
        f"{TOP}/data/meta.mat": meta.getvalue(),
        f"{TOP}/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{number[wnid]}\n" for wnid in labels
        ).encode(),
        f"{TOP}/readme.txt": b"about",
    }
    return tarball(path, members)
