"""Continual-learning methods, a folder each."""
