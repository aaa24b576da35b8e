"""The modules of a network whose parameters are replaced, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hypermask_fast.layers.masked import MaskedLayer, MaskedWeights

_LAYERS = (nn.Linear, _ConvNd, nn.Bilinear)
"""Kinds of modules of which the one that runs last is the output layer."""

Note = Callable[["Place", str], None]
"""Is told which parameter of which module is read."""


class _NotedWeights(MaskedWeights):
    """Weights that tell when a layer reads them."""

    note: Callable[[], None]

    @property
    def weight(self) -> Tensor:
        self.note()
        return self[0]


class _NotedDict(dict[str, Tensor]):
    """Weights by the names of parameters that tell when a module reads one."""

    note: Callable[[str], None]

    def __getitem__(self, key: str) -> Tensor:
        self.note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            self.note(key)
        return super().get(key, default)


class Place(NamedTuple):
    """A module whose parameters are replaced.

    Attributes:
        name: Of the module.
        module: The module.
        keys: For the names of its own parameters the names of the entries that they are.
    """

    name: str
    module: nn.Module
    keys: Mapping[str, str]

    @property
    def is_layer(self) -> bool:
        """Whether the module may be the output layer."""
        return isinstance(self.module, _LAYERS)

    def stand_in(self, weights: Mapping[str, Tensor]) -> Any:
        """Return what the module runs with, of weights by the names of entries."""
        if not isinstance(self.module, MaskedLayer):
            return {key: weights[entry] for key, entry in self.keys.items()}
        own: Any = self.module._parameters
        return MaskedWeights(
            *(
                weights[self.keys[key]] if key in self.keys else own[key]
                for key in MaskedWeights._fields
            )
        )

    def noted(self, note: Note) -> Any:
        """Return a stand-in of the module's own parameters that tells which of them are read."""
        own: Any = self.module._parameters
        if isinstance(self.module, MaskedLayer):
            weights = _NotedWeights(*(own[key] for key in MaskedWeights._fields))
            weights.note = partial(self._note_all, note)
            return weights
        noted = _NotedDict({key: own[key] for key in self.keys})
        noted.note = lambda key: note(self, key)
        return noted

    def _note_all(self, note: Note) -> None:
        for key in self.keys:
            note(self, key)

    def unread(self, read: Collection[tuple[str, str]]) -> list[str]:
        """Return what was not read: the layer, or entries.

        Args:
            read: Names of modules, and of their own parameters, that were read.
        """
        keys = [key for key in self.keys if (self.name, key) not in read]
        if isinstance(self.module, MaskedLayer):
            return [self.name or "weight"] if keys else []
        return [self.keys[key] for key in keys]
