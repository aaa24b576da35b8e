"""Launches of the kernels of masked layers."""
