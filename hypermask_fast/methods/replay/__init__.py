"""Replay of earlier tasks' images from a variational autoencoder that a hypernetwork protects."""
