"""Launches of the kernels of batches."""
