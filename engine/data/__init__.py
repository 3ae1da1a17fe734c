"""The datasets of a benchmark: packs, classes and splits."""
