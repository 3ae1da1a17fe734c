"""Benchmarks whose datasets are read from their official files, or drawn."""
