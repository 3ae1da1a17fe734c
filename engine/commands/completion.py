"""`rib completion`: a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("completion", help="a script for bash, zsh or fish, to be sourced")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import shtab

    from engine.commands.parser import parser

    print(shtab.complete(parser(), shell=arguments.shell))
