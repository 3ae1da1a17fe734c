"""What a campaign costs: its work is counted (`work`), then timed by machines' rates (`estimate`).

`rates` holds the constants, `flops` counts operations, and `throughput` measures on this machine.
"""
