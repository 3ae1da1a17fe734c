"""Compiles DeepSpeed's CPU operator in advance, so that no run waits for it."""

from __future__ import annotations

import sys

from engine.machine import entry, quiet, ranks


def main() -> int:
    quiet.libraries()
    ranks.start()
    ranks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(entry.guarded(main))
