"""What the first step from a given state did, and how far that is from float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


def some_rows(name: str, p: Tensor) -> Tensor:
    """Return about 64 rows of a parameter."""
    rows = p.reshape(len(p), -1) if p.dim() else p.reshape(1, 1)
    return rows[:: max(1, len(rows) // 64)]


class Trained(NamedTuple):
    """Parameters that a step trains, and what is compared of it.

    Attributes:
        named: The parameters by name. Those with the same name before the first "." are compared
            as one vector: a bias before a batch norm alone has no gradient but rounding.
        optimizers: Of any kind; of Adam the updates are compared too.
        losses: Attributes of what a step returns.
        picked: Returns the entries of a parameter that are compared.
    """

    named: Mapping[str, Sequence[nn.Parameter]]
    optimizers: Sequence[Optimizer]
    losses: Sequence[str]
    picked: Callable[[str, Tensor], Tensor] = some_rows

    def vectors(self, value: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """Return what there is of each parameter, one float64 vector for each group of them."""
        parts: dict[str, list[Tensor]] = {}
        for name, many in self.named.items():
            group = parts.setdefault(name.partition(".")[0], [])
            group += [self.picked(name, value(p).detach()).flatten() for p in many]
        return {group: torch.cat(many).double().cpu() for group, many in parts.items()}

    def losses_of(self, found: Any) -> dict[str, Tensor]:
        """Return the losses that a step returned, by the names of :func:`errors`."""
        return {
            f"loss.{name}": getattr(found, name).detach().double().cpu() for name in self.losses
        }

    def _group_of(self, p: nn.Parameter) -> dict[str, Any]:
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        return next((group for group in groups if any(p is each for each in group["params"])), {})

    def _moment(self, p: nn.Parameter, key: str) -> Tensor:
        states = (o.state[p] for o in self.optimizers if p in o.state)
        state: dict[str, Tensor] = next(states, {})
        return state[key] if key in state else torch.zeros_like(p)

    def _rate(self, p: nn.Parameter) -> Tensor:
        rate = self._group_of(p).get("lr", 0.0)
        return torch.as_tensor(rate, dtype=torch.float64).to(p.device).expand_as(p)

    def gradients(self, losses: Any) -> dict[str, Tensor]:
        """Return losses and gradients without a step, which memory for float64 is short of."""
        losses.total.backward()
        return self._gradients() | self.losses_of(losses)

    def _gradients(self) -> dict[str, Tensor]:
        found = self.vectors(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        return {f"gradient.{name}": g for name, g in found.items()}

    def stepped(self, step: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor) -> Any:
        """Take the first step and return losses, gradients and, with Adam, parameters.

        Adam's gradients are read from its first moment, which is (1 - beta1) g after one step, so
        that they are those the update used. ``after`` and ``expected`` are the parameters as the
        step left them and as those moments imply.
        """
        first_group = self.optimizers[0].param_groups[0]
        if "betas" not in first_group:
            losses = step(x, y)
            return self._gradients() | self.losses_of(losses)
        (beta1, beta2), eps = first_group["betas"], first_group["eps"]
        before, rates = self.vectors(lambda p: p), self.vectors(self._rate)
        losses = step(x, y)
        first = self.vectors(lambda p: self._moment(p, "exp_avg"))
        second = self.vectors(lambda p: self._moment(p, "exp_avg_sq"))
        after = self.vectors(lambda p: p)
        found = {}
        for name in before:
            gradient = first[name] / (1 - beta1)
            found[f"gradient.{name}"] = gradient
            found[f"after.{name}"] = after[name]
            change = rates[name] * gradient / ((second[name] / (1 - beta2)).sqrt() + eps)
            found[f"expected.{name}"] = before[name] - change
        return found | self.losses_of(losses)


def _compared(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what was found and what it is compared with, by name."""
    pairs = {}
    for name, value in found.items():
        if not name.startswith("expected."):
            key = name.replace("after.", "expected.")
            pairs[name] = value, found[key] if key != name else exact[name]
    return pairs


def errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Return relative errors (in root mean square) of a first step against float64.

    Losses and gradients are compared with the float64 run's, updated parameters with what the
    variant's own moments imply: Adam's first step would blow up the rounding of small gradients.
    A NaN counts as infinite.

    Args:
        found: Of :meth:`Trained.stepped`.
        exact: The same, or :meth:`Trained.gradients`, in float64.
    """
    result = {}
    for name, (value, truth) in _compared(found, exact).items():
        size = truth.norm()
        error = float((value - truth).norm() / size) if size else float(value.norm())
        result[name] = error if error == error else float("inf")
    return result


def differences(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of each value that :func:`errors` compares.

    A NaN counts as infinite.

    Args:
        found, exact: As there.
    """
    result = {}
    for name, (value, truth) in _compared(found, exact).items():
        largest = float((value - truth).abs().max()) if value.numel() else 0.0
        result[name] = largest if largest == largest else float("inf")
    return result
