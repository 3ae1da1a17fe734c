"""Evaluate a batch of models in one pass over each dataset."""
