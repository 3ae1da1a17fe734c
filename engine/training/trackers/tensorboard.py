"""TensorBoard's event files."""

from __future__ import annotations

import re
from collections.abc import Mapping

from engine.training.trackers.base import Subject
from loaders.files.root import Root


class Tracker:
    """Writes event files to `<folder>/tensorboard/<group>/<name>`; a run of this name continues."""

    def __init__(self, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # No part may begin with a dot: `..` would leave the folder.
        parts = [re.sub(r"^\.+|[^\w.-]+", "-", part) for part in (subject.group, subject.name)]
        folder = Root(subject.folder).make("/".join(["tensorboard", *parts]))  # follows no links
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        text = "\n".join(f"    {key}: {value}" for key, value in subject.config.items())
        self._writer.add_text("recipe", text)

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
