"""Public callables with right arguments, and wrong ones for each."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hypermask_fast.methods.base import Learner
from hypermask_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Subject:
    """A callable and its arguments.

    Attributes:
        name: Of the callable.
        make: Makes what it is called on.
        call: Calls it: ``call(made, **arguments)``.
        good: Right arguments.
        bad: For each argument, or several joined by commas, wrong values (tuples for several).
        runs: The right arguments suffice, without files, other processes or calls before.
    """

    name: str
    make: Callable[[], Any]
    call: Callable[..., Any]
    good: Mapping[str, Any]
    bad: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    runs: bool = True

    def cases(self) -> Iterator[tuple[str, Subject, dict[str, Any]]]:
        """Names and changed arguments."""
        for names, values in self.bad.items():
            for number, value in enumerate(values):
                keys = names.split(",")
                changed = dict(zip(keys, value if len(keys) > 1 else (value,), strict=True))
                yield f"{self.name}-{names}-{number}-{_label(value)}", self, changed


def _label(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype)[6:]}{list(value.shape)}"
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        return "_".join(map(_label, value))[:40]
    text = repr(value)
    if " at 0x" in text or isinstance(value, np.ndarray | nn.Module):
        text = type(value).__name__
    text = re.sub(r"0x[0-9a-f]+", "", text)
    return "".join(c if c.isalnum() or c in "_.[]()" else "_" for c in text)[:30]


def described(value: Any) -> list[str]:
    """Texts of which an error about this value must have one."""
    if isinstance(value, Tensor | np.ndarray):
        texts = [str(tuple(value.shape)), str(value.dtype), type(value).__name__]
        texts += [str(tuple(value.shape[:1]))] if value.ndim else []
        texts += [str(value.device)] if isinstance(value, Tensor) else []
        if value.size <= 8 if isinstance(value, np.ndarray) else value.numel() <= 8:
            texts.append(repr(value))
            if str(getattr(value, "device", "")) != "meta":
                texts += map(str, value.reshape(-1).tolist())
        return texts
    if isinstance(value, dict | list | tuple | str) and not value:
        return [""]
    if isinstance(value, dict):
        return [text for item in value.items() for text in described(list(item))]
    if isinstance(value, list | tuple):
        items = [text for item in value for text in described(item)]
        return [*items, repr(value), repr(tuple(value)), type(value).__name__]
    if isinstance(value, type):
        return [value.__name__, type(value).__name__]
    if isinstance(value, str):
        return [
            repr(value),
            value if len(value) > 3 else repr(value),
            type(value).__name__,
            *map(repr, value),
        ]
    return [repr(value), str(value), type(value).__name__]


def state(value: Any) -> Any:
    """All that a call that is refused must leave as it was."""
    if isinstance(value, tuple | list):
        return [state(item) for item in value]
    found: list[Any] = []
    if isinstance(value, Trainer):
        found += [value.step, value.columns, value.tasks_done, value.settings, state(value.learner)]
    if isinstance(value, torch.optim.Optimizer):
        groups = [{k: v for k, v in g.items() if k != "params"} for g in value.param_groups]
        found += [groups, [[id(p) for p in g["params"]] for g in value.param_groups]]
        found.append(copy.deepcopy(value.state_dict()["state"]))
    if isinstance(value, nn.Module):
        found += [(n, type(m), m.training, sorted(vars(m))) for n, m in value.named_modules()]
        found += [(n, id(p), p.requires_grad, p.grad is None) for n, p in value.named_parameters()]
        found += [(n, t.clone()) for n, t in value.state_dict().items()]
    if isinstance(value, Learner):
        found += [value.tasks, value.learned, value.current, value.phase, value.capacity]
        found += [value.steps_taken, copy.deepcopy(value.task_state())]
    return found


def random_state() -> list[Any]:
    """The states of the global generators."""
    return [torch.get_rng_state(), random.getstate()]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
