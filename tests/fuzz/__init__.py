"""Random cases of every kernel, judged against float64: ``python -m tests.fuzz --help``."""

import os

import torch

# Triton reads the variable when it is first imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
