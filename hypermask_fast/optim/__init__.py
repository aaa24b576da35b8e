"""Gradients of low rank that are kept as factors, and the optimizer that takes them."""
