"""Train one cell of a campaign.

deepspeed engine/launch.py recipe=emoji/ewc downstream=twemoji
torchrun --nproc-per-node 2 engine/launch.py recipe=emoji/ewc
python engine/launch.py recipe=emoji/ewc            one process
python engine/launch.py recipe=                     list the recipes
python engine/launch.py recipe=emoji/ewc --print    show the resolved recipe
python engine/launch.py recipe=emoji/ewc --debug    show the traceback of an error
rib train recipe=emoji/ewc                          the same, if the engine is installed
torchrun --nproc-per-node 2 -m engine.launch recipe=emoji/ewc
"""

from __future__ import annotations

import sys
from pathlib import Path

ENGINE = Path(__file__).resolve().parent
# Python puts the script's folder first on the path; engine/data would hide a package `data`.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ENGINE]
sys.path.insert(0, str(ENGINE.parent))

from engine import cli  # noqa: E402
from engine.machine import parent  # noqa: E402


def main() -> int:
    parent.follow_launcher()
    return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
