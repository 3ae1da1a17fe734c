"""Speed as a ratio to a named peer: `python -m bench [case ...] [--device cpu|cuda]`."""

import os

# As in the engine (`engine.machine.entry`), and before torch is loaded, which reads it then:
# a peer's idle OpenMP threads would spin into the next entrant's time on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
