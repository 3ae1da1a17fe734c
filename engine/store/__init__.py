"""Data on disk: artefacts by the hash of their key, cells, and unfinished slices."""
