"""Semi-binary masks: thresholds, and the masked weights of a whole network at once."""
