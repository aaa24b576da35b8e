"""The passes over a hypernetwork's head, z = A h + b: one signature, five engines."""
