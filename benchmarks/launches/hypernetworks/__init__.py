"""Launches of the kernels of hypernetworks."""
