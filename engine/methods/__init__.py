"""Fine-tuning methods, one file each, found by name. `base` defines the interface.

`beyond` has the methods beyond the benchmark's ten.
"""

from engine.methods import options_first

options_first.load_from(*__path__)
