"""The sets of a benchmark as models see them: packs, classes, splits."""
