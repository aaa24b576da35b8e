"""Launches of the kernels of a head."""
