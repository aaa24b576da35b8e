"""Processes, clocks and files: what every benchmark needs."""
