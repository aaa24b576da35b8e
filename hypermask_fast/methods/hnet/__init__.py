"""HNET: a hypernetwork generates the weights of each task's network."""
