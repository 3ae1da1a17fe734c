"""The command line of `rib`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata

from engine.commands import NAMES


def parser(name: str = "") -> argparse.ArgumentParser:
    """The parser with the command of this name alone, which is soon made; else with all of them."""
    parser = argparse.ArgumentParser(prog="rib", description="The ImageNet-RIB engine.")
    parser.add_argument("--version", action="version", version=f"rib {_version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback behind an error")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for each in (name,) if name in NAMES else NAMES:
        importlib.import_module(f"engine.commands.{each}").add(group)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("rib-engine")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"
