"""What the engine runs on: ranks, GPUs, memory and precision."""
