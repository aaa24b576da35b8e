"""Launches that the compile gate compiles: ``LAUNCHES`` of each module, by name.

A launch makes its tensors on "cuda" (they are fake there) and calls a launcher of the package.
"""
