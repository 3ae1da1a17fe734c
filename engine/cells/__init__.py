"""Cells: found in the store or made, with the snapshots that training leaves."""
