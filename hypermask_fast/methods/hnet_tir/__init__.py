"""HNET+TIR: HNET whose task is inferred by a classifier that replayed images keep."""
