"""Evaluation of a sample of the images: which are drawn, and how far its numbers may be off."""
