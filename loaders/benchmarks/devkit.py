"""Labels of IN-1K's validation set, from its development kit.

The kit numbers classes in its own order. `meta.mat` gives the wnid of each number, and a text file
the number of each image.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import scipy.io

META, NUMBERS = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_DAMAGE = (tarfile.TarError, EOFError, OSError, scipy.io.matlab.MatReadError)


def wnids(archive: Path) -> list[str]:
    """Returns the wnid of each validation image, in order, from the kit's .tar.gz.

    Raises ValueError for an archive that is damaged or not the kit.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as kit:
            for member in kit:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in (META, NUMBERS):
                    content = kit.extractfile(member)
                    assert content is not None, member.name
                    members[name] = content.read()
        table = scipy.io.loadmat(io.BytesIO(members[META]), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table.ravel()}
        return [wnid_of[int(number)] for number in members[NUMBERS].split()]
    except (*_DAMAGE, KeyError, ValueError) as error:
        raise ValueError(
            f"{archive} is not ImageNet's development kit of 2012 ({error!r}); download "
            "ILSVRC2012_devkit_t12.tar.gz again"
        ) from error
