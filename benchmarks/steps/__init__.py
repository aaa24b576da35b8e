"""Training steps of the variants side by side."""
