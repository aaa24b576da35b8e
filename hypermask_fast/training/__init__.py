"""Training: run configuration, trainer, checkpoints, metrics, reports and progress."""
