"""Archives as servers send them."""

import io
import tarfile
from pathlib import Path


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    """A .tar.gz of these files, by their names in it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
