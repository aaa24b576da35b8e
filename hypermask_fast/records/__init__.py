"""What a run records of itself, and how that is read again."""
