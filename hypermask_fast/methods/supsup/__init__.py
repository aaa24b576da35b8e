"""SupSup: a binary mask over fixed random weights for each task."""
