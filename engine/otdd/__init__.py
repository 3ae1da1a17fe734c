"""Distances between datasets: optimal transport problems and their solution."""
