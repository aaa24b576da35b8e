"""ExSSNeT: each task selects weights by a mask, and trains those that no earlier task has."""
