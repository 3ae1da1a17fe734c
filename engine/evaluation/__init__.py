"""Evaluation: a bank of models, one pass over a set for all of them."""
