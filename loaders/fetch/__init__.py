"""Downloads: pinned packages, published files, and the archives that they come in."""
