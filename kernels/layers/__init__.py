"""Kernels of masked linear and convolutional layers."""
