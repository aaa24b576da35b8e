"""HNET+R: an ordinary classifier that learns from images replayed by a protected generator."""
