"""What is kept on disk: artefacts by the hash of what made them, cells, unfinished slices."""
