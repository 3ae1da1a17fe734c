"""Cells: planned, found in the store or built, with their snapshots during training."""
