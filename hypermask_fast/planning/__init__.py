"""The memory of a run before it starts."""
