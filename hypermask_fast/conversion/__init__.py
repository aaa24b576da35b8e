"""Turns any network into one whose weights can be replaced in a forward, and back."""
