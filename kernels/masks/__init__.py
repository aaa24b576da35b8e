"""Kernels of thresholds and masked weights of all tensors of a network."""
