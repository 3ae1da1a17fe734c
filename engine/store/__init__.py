"""Data on disk: artefacts named by the hash of their key, cells, and unfinished slices."""
