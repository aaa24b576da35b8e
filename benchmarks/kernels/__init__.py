"""Kernels by themselves beside what they replace."""
