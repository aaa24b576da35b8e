"""Drop-in layers whose weights can be masked, and normalisation layers with a state for each task."""
