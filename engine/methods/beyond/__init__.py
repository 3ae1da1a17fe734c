"""Methods beyond the benchmark's ten. Nothing outside this folder imports them."""

from engine.methods import options_first

options_first.load_from(*__path__)
