"""Files and names on the way of a command, counted.

    python tests/way.py campaign emoji --dry-run

runs `rib campaign emoji --dry-run`, and then says how many files of ours were read (imported), how
many of them had a function that ran, and how many functions these were: what somebody reads who
follows the command. `-v` first lists them. Only the main thread is watched.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(f"{ROOT / name}/" for name in ("engine", "kernels", "loaders"))


def main(words: list[str]) -> int:
    is_long = words[:1] == ["-v"]
    names: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and is_function and code.co_filename.startswith(OURS):
            names.add((code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname))

    sys.path[0] = str(ROOT)
    sys.setprofile(watch)
    try:
        from engine import cli

        code = cli.main(words[is_long:])
    finally:
        sys.setprofile(None)
    if is_long:
        print(*sorted(f"{file}  {name}" for file, name in names), sep="\n")
    paths = {str(getattr(module, "__file__", "")) for module in [*sys.modules.values()]}
    files = {path for path in paths if path.startswith(OURS)}
    print(f"{len(files)} files read; {len(names)} names in {len({f for f, _ in names})} files")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
