"""Runs in a folder: checkpoints that can be resumed, logs, metrics and reports."""
