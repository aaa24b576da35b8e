"""Launches of the kernels of optimizers."""
