"""Speed as a ratio to a named peer: `python -m bench [case ...] [--device cpu|cuda]`."""
