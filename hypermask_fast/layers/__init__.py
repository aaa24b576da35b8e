"""Drop-in layers that can be masked, and normalisation layers with a state for each task."""
