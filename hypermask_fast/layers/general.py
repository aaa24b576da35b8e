"""Any module whose own parameters can be replaced in a forward."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.rnn import RNNBase

from hypermask_fast.layers.own import MadeModule, by_name, forward_of, made_class, readable
from hypermask_fast.layers.stand_ins import standing_in, was_read

SOURCE = "_hypermask_fast_source"
"""The attribute of a module with what its repr shows as the source of its masks."""


class GeneralModule(MadeModule):
    """What the converted modules share. Without a stand-in they are the plain module.

    A stand-in is a dict of tensors by the names of the module's own parameters; of those that it
    lacks the module's own are read.
    """

    def extra_repr(self) -> str:
        mask = f"mask={vars(self).get(SOURCE, 'none')}"
        return ", ".join(filter(None, (super().extra_repr(), mask)))


class _Recurrent(GeneralModule, RNNBase):
    """``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``, which read their weights from a list."""

    @property
    def _flat_weights(self) -> Any:
        if "_flat_weights" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute '_flat_weights'")
        own = vars(self)["_flat_weights"]
        found = standing_in(self)
        if found is None:
            return own
        named = zip(self._flat_weights_names, own, strict=True)
        return [was_read(self, found[name]) if name in found else weight for name, weight in named]

    @_flat_weights.setter
    def _flat_weights(self, weights: Any) -> None:
        vars(self)["_flat_weights"] = weights

    def _update_flat_weights(self) -> None:
        if standing_in(self) is None:
            super()._update_flat_weights()

    def flatten_parameters(self) -> None:
        """Lay the module's own weights out in one piece; those that stand in stay as they are."""
        if standing_in(self) is None:
            super().flatten_parameters()


class _EncoderLayer(GeneralModule, nn.TransformerEncoderLayer):
    """``nn.TransformerEncoderLayer``, whose fast path reads the weights of layers and norms."""

    @property
    def activation_relu_or_gelu(self) -> Any:
        # 0 is another activation, for which there is no fast path.
        return vars(self)["activation_relu_or_gelu"] if standing_in(self) is None else 0

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: Any) -> None:
        vars(self)["activation_relu_or_gelu"] = value


class _Encoder(GeneralModule, nn.TransformerEncoder):
    """``nn.TransformerEncoder``, which packs padded batches for the fast path of its layers."""

    @property
    def use_nested_tensor(self) -> Any:
        return vars(self)["use_nested_tensor"] if standing_in(self) is None else False

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: Any) -> None:
        vars(self)["use_nested_tensor"] = value


_KINDS: dict[type[nn.Module], type[GeneralModule]] = {
    RNNBase: _Recurrent,
    nn.TransformerEncoderLayer: _EncoderLayer,
    nn.TransformerEncoder: _Encoder,
}
FAST_PATHS = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules that are converted for what is in them, though they have no parameters of their own."""


@cache
def general_class(plain: Any, keys: tuple[str, ...]) -> type[GeneralModule]:
    """Return the class that a module becomes, a subclass of its own.

    Args:
        plain: Its class.
        keys: Names of its own parameters.

    Raises:
        TypeError: The class cannot be extended.
    """
    base = next((b for kind, b in _KINDS.items() if issubclass(plain, kind)), GeneralModule)
    body = {key: readable(key, by_name) for key in keys}
    made = (general_class, plain, keys)
    found = made_class(plain, base, forward=forward_of(plain), _hypermask_fast_made=made, **body)
    assert issubclass(found, GeneralModule)
    return found
