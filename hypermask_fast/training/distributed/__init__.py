"""One learner trained by several processes, each with its rows of every batch."""
