"""Files of a run: written whole or not at all, named with their sums, and found again."""
