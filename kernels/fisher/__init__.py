"""The diagonal Fisher information of a network, one batch at a time."""

from kernels.fisher.diagonal import FisherAccumulator, fisher_diagonal

__all__ = ["FisherAccumulator", "fisher_diagonal"]
