"""The modules of a converted network, whose changes after the conversion are noticed."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from hypermask_fast.conversion.checks import MARK

_FIX = "; undo that, or unconvert() the network and build a new learner over it"


class _Known(NamedTuple):
    """A module as the conversion left it: what a change of it would change."""

    name: str
    module: nn.Module
    kind: type[nn.Module]
    own_forward: bool
    children: tuple[nn.Module | None, ...]
    parameters: tuple[str, ...]

    def __reduce__(self) -> Any:
        # A class that was made for the conversion has no name that a pickle could find it by.
        same = type(self.module) is self.kind
        return _known_again, (same, *self._replace(kind=nn.Module))

    def is_as_it_was(self) -> bool:
        module = self.module
        return (
            type(module) is self.kind
            and ("forward" in vars(module)) is self.own_forward
            and tuple(module._modules.values()) == self.children
            and tuple(module._parameters) == self.parameters
        )


def _known_again(same: bool, name: str, module: nn.Module, kind: Any, *rest: Any) -> _Known:
    return _Known(name, module, type(module) if same else kind, *rest)


def _holds_nothing(module: nn.Module) -> bool:
    """Return whether a module has nothing that tasks could share, and no dropout."""
    held = (*module.parameters(), *module.buffers())
    return not held and not any(isinstance(m, _DropoutNd) for m in module.modules())


class Structure:
    """The modules of a converted network.

    Args:
        net: The network, just converted.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._known = self._found()

    def _found(self) -> list[_Known]:
        return [
            _Known(
                *(name, m, type(m), "forward" in vars(m)),
                tuple(m._modules.values()),
                tuple(m._parameters),
            )
            for name, m in self.net.named_modules()
        ]

    def check(self) -> None:
        """Look whether all is as the conversion left it; modules without any state may change.

        Raises:
            RuntimeError: The network was unconverted, or a module was replaced or changed.
        """
        if MARK not in vars(self.net):
            raise RuntimeError(
                f"the {type(self.net).__name__} was unconverted and takes no masks any more; "
                "build a new learner"
            )
        if all(known.is_as_it_was() for known in self._known):
            return
        now = dict(self.net.named_modules())
        old = {known.name: known for known in self._known}
        for name, known in old.items():
            if now.get(name) is not known.module:
                self._compare(name, known.module, now.get(name))
            elif not known.is_as_it_was():
                _compare_one(known)
        for name in now.keys() - old.keys():
            self._compare(name, None, now[name])
        self._known = self._found()

    def _compare(self, name: str, old: nn.Module | None, new: nn.Module | None) -> None:
        if all(m is None or _holds_nothing(m) for m in (old, new)):
            return
        if new is None:
            raise RuntimeError(
                f"{name} was removed from the {type(self.net).__name__} after it was converted"
                f"{_FIX}"
            )
        raise RuntimeError(
            f"{name} is a {type(new).__name__} that came into the {type(self.net).__name__} after "
            f"it was converted, so that no task's weights reach it{_FIX}"
        )


def _compare_one(known: _Known) -> None:
    module = known.module
    name = known.name or "the network"
    if type(module) is not known.kind:
        _refuse(name, f"is a {type(module).__name__}", f"a {known.kind.__name__}")
    if ("forward" in vars(module)) is not known.own_forward:
        _refuse(name, "has a forward of the instance", "without one")
    if tuple(module._parameters) != known.parameters:
        own, was = (", ".join(keys) or "none" for keys in (module._parameters, known.parameters))
        _refuse(name, f"has the parameters {own}", f"with {was}")


def _refuse(name: str, now: str, before: str) -> NoReturn:
    raise RuntimeError(
        f"{name} {now} and was {before} when it was converted, so that a task's weights may not "
        f"reach it{_FIX}"
    )
