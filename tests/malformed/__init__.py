"""What every public callable says to an argument that is wrong."""
