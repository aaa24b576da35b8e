"""Drop-in layers whose weights can be masked, and whose normalisation can be replaced."""
