"""Launches of the kernels of all masks of a network."""
