"""Several runs as one: seeds, comparisons of methods, searches."""
