"""Kernels of the passes over a hypernetwork's head."""
