"""Archives as servers send them."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def tarball(path: Path, files: Mapping[str, bytes]) -> Path:
    """A .tar.gz of these files, by their names in it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip file of these files, by their names in it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
