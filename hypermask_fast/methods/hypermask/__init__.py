"""HyperMask: a hypernetwork emits a semi-binary mask for each task."""
