"""Kills and write faults against whole runs: ``python -m tests.campaign``."""
