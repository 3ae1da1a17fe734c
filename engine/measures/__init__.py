"""Compute accuracy, RI, mRI and their uncertainty from stored predictions. No torch."""
