"""Metrics of continual learning, and the statistics that compare them."""
