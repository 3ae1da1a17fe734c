"""Training of one cell: the loop, optimizers with their penalty, the Fisher."""
