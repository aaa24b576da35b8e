"""HyperInterval: boxes of embeddings become boxes of weights; one network may serve all tasks."""
