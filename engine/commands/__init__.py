"""The words after `rib`, a module each: `add` declares the command, `run` does it.

Modules import torch, and whatever imports it, only when their command runs: `rib --help` is quick.
"""
