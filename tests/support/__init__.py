"""Helpers of the tests, each once."""
