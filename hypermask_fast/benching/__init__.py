"""A training step beside the published algorithm's, phase by phase."""
