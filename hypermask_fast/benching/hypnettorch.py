"""The published step on the hypernetwork and regularizer of the package that HyperMask builds on.

For machines where `hypnettorch <https://pypi.org/project/hypnettorch/>`_ 0.0.4 and what it imports
are installed; this package does not need it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.benching.published import Published
from hypermask_fast.vision import import_torchvision


def available() -> bool:
    """Return whether hypnettorch is installed."""
    return importlib.util.find_spec("hypnettorch") is not None


class Hypnettorch(Published):
    """:class:`Published` with hypnettorch's ``HMLP`` and ``calc_fix_target_reg``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # hypnettorch imports it, which fails beside a CPU build of torch unless this mends it.
        import_torchvision()
        self._regularizer = importlib.import_module("hypnettorch.utils.hnet_regularizer")
        hnets = importlib.import_module("hypnettorch.hnets")
        shapes = [list(old.shape) for old in self.previous.values()]
        with torch.device("meta"):
            self._hnet = hnets.HMLP(
                shapes,
                cond_in_size=self.embeddings[0].numel(),
                layers=[len(bias) for _, bias in self.trunk],
                activation_fn=nn.ELU(),
                num_cond_embs=len(self.embeddings),
                verbose=False,
            )
        layers = [p for layer in (*self.trunk, self.head) for p in layer]
        # Its own parameters are meta tensors; these are the recorded state.
        for index, parameter in enumerate((*self.embeddings, *layers)):
            self._hnet.internal_params[index] = parameter
        sizes = [old.numel() for old in self.previous.values()]
        self._targets = [
            [part.view(shape) for part, shape in zip(t.split(sizes), shapes, strict=True)]
            for t in self.targets
        ]

    def outputs(self, task: int) -> Tensor:
        return torch.cat([part.flatten() for part in self._hnet.forward(cond_id=task)])

    def output_reg(self) -> Tensor:
        return self._regularizer.calc_fix_target_reg(
            self._hnet, len(self.targets), targets=self._targets
        )
