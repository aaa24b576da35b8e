"""Kernels of hypernetworks beside their heads."""
