"""Wrong values that many arguments share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

nan, inf = float("nan"), float("inf")
X, Y = torch.linspace(-1, 1, 20).view(4, 5), torch.tensor([0, 1, 2, 0])
LOADER = DataLoader(TensorDataset(X, Y))

NOT_NUMBERS: list[Any] = ["30", None, [30], True, 3j, object(), np.array([1.0, 2.0]), {}]
PERCENTS = [*NOT_NUMBERS, nan, inf, -1.0, 100.5, np.array(nan)]
NOT_BACKENDS: list[Any] = [3, "cuda", "Triton", ["auto"], True, b"auto"]
NOT_TENSORS: list[Any] = [None, "x", 3, X.tolist(), X.numpy(), LOADER, LOADER.dataset]
TASKS: list[Any] = [2, -1, 1.0, True, "0", None, [0], [0, 0, 1, 1], (0,), np.array([0, 1, 0, 1])]
TASKS += [torch.tensor(1.0), torch.tensor(True), torch.tensor(7), object(), nan, 10**30]
ROWS: list[Any] = [torch.tensor([0, 5, 1, 0]), torch.zeros(4), torch.tensor([0, 1])]
ROWS += [torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)]
INPUTS: list[Any] = [None, "x", 3, X.tolist(), X.numpy(), LOADER, LOADER.dataset]
INPUTS += [X.to("meta"), X[:, :4], X.double(), X.long(), X.half(), X[0], X[None], torch.tensor(1.0)]
LABELS: list[Any] = [None, "y", 3, Y.tolist(), Y.numpy(), Y.int(), Y.float(), Y[:3], Y[:, None]]
LABELS += [Y + 1, Y - 100, Y.to("meta"), nn.functional.one_hot(Y), torch.tensor(0), Y.bool()]
NOT_MODULES: list[Any] = [None, "net", 3, nn.Linear, [nn.Linear(5, 3)], torch.ones(3), lambda x: x]
NOT_COUNTS: list[Any] = ["3", None, 1.5, True, [3], 0, -1, nan, torch.tensor(1.5), 3j]
