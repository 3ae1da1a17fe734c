"""Benchmarks whose sets are read from their official files, or drawn."""
