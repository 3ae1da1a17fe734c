"""The machine: ranks, GPUs, memory and precision."""
