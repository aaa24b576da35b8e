"""Adam and AdamW that take a gradient of low rank as its factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer

from hypermask_fast import head_ops
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.factored import FactoredGrad

# Options of a group that torch.optim.Adam does not have, and so not its state_dict.
_OWN_OPTIONS = ("moments_dtype", "row_sparse")


def _check_group(group: dict[str, Any]) -> None:
    lr, betas = group["lr"], group["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ConfigError(f"lr has shape {tuple(lr.shape)}; give a number or a 0-d tensor")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ConfigError(f"{name} is {group[name]}; give a number that is not negative")
    if len(betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas):
        raise ConfigError(f"betas are {betas}; give two numbers in [0, 1)")
    if group["foreach"] and group["fused"]:
        raise ConfigError("foreach and fused are both True; choose one, or None for the faster")
    if group["moments_dtype"] == torch.bfloat16:
        # A name, so that the group can be saved as JSON.
        group["moments_dtype"] = "bfloat16"
    if group["moments_dtype"] not in (None, "bfloat16"):
        raise ConfigError(
            f"moments_dtype is {group['moments_dtype']}; give torch.bfloat16, or None for the "
            "dtype of the parameter"
        )


def _takes_factors(p: Tensor, group: dict[str, Any]) -> bool:
    return (
        isinstance(p.grad, FactoredGrad)
        and p.grad.is_factored
        and not group["row_sparse"]
        and p.is_contiguous()
        and p.dtype in (torch.float32, torch.float64)
    )


def _dense_grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad


def _rows_with_gradient(grad: Tensor) -> Tensor:
    """Bool (rows, 1, ...). NaN counts as a gradient."""
    moved = grad.ne(0).reshape(len(grad), -1).any(1)
    return moved.reshape(-1, *[1] * (grad.dim() - 1))


def _fuses(params: list[Tensor], group: dict[str, Any]) -> bool:
    if group["fused"] is not None or group["foreach"] is not None:
        return bool(group["fused"])
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)


def _adam_options(group: dict[str, Any], state: dict[str, Tensor]) -> head_ops.AdamOptions:
    return {
        "lr": float(group["lr"]),
        "beta1": group["betas"][0],
        "beta2": group["betas"][1],
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "decoupled": group["decoupled_weight_decay"],
        "step": float(state["step"]),
        "maximize": group["maximize"],
    }


class FactoredAdam(Optimizer):
    """Adam (Kingma and Ba 2015), or AdamW, for parameters of which some have a FactoredGrad.

    A parameter whose ``.grad`` is a :class:`~hypermask_fast.factored.FactoredGrad` is updated in
    one pass over its rows, and its gradient is never made dense; all others are updated by
    PyTorch's own Adam, fused where ``foreach`` and ``fused`` are None. A parameter without a
    gradient is left alone. Arithmetic, state and ``state_dict`` are those of ``torch.optim.Adam``
    and ``torch.optim.AdamW``: each can load what the other saved.

    Options of a parameter group beside those below:
        row_sparse: True for a table of embeddings, one a row: a row whose gradient is exactly zero
            in a step keeps its values and moments, so it moves neither by momentum nor by weight
            decay. The step count is the table's, as in ``torch.optim.SparseAdam``. Default False.

    Args:
        params: Parameters, named parameters, or groups of them.
        lr: Learning rate, a number or a 0-d tensor. Default 1e-3.
        betas: Decay rates of the two moments. Default (0.9, 0.999).
        eps: Added to the root of the second moment. Default 1e-8.
        weight_decay: L2 penalty, or with ``decoupled_weight_decay`` AdamW's decay. Default 0.
        decoupled_weight_decay: AdamW rather than Adam. Default False.
        maximize: Ascend. Default False.
        foreach, fused, capturable: As in ``torch.optim.Adam``.
        moments_dtype: torch.bfloat16 halves the memory of both moments of the parameters with a
            FactoredGrad. Default None: the parameter's dtype. The cost, on random gradients: the
            distance moved is off by 0.3 % after 50 steps and by 5 % after 1500 (in float32 by
            0.003 %), for a second moment stays as it is where it changes by less than 2^-9 a step.

    Raises:
        ConfigError: An option has a value that cannot be used.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        moments_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": False,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": False,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "moments_dtype": moments_dtype,
            "row_sparse": False,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own; those not given are the defaults.

        Raises:
            ConfigError: An option has a value that cannot be used.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Called first, with gradients enabled, to evaluate the loss; optional.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"a parameter of shape {tuple(p.shape)} has a sparse gradient; make it "
                        "dense, and set row_sparse=True in its group"
                    )
                if _takes_factors(p, group):
                    self._step_factored(p, group)
                else:
                    dense.append(p)
            if dense:
                self._step_dense(dense, group)
        return loss

    def _state_of(self, p: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            double = torch.get_default_dtype() == torch.float64
            state["step"] = torch.tensor(0.0, dtype=torch.float64 if double else torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return state

    def _factored_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if group["capturable"]:
            raise ConfigError(
                "capturable is True and a parameter has a FactoredGrad, whose update takes numbers "
                "from the host; use capturable=False"
            )
        dtype = p.dtype if group["moments_dtype"] is None else torch.bfloat16
        state = self._state_of(p, dtype)
        for name in ("exp_avg", "exp_avg_sq"):
            # load_state_dict gives moments the parameter's dtype.
            if state[name].dtype != dtype or not state[name].is_contiguous():
                state[name] = state[name].to(dtype).contiguous()
        state["step"] = state["step"].cpu()
        return state

    def _step_factored(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self._factored_state(p, group)
        grad = p.grad
        assert isinstance(grad, FactoredGrad)
        state["step"] += 1
        head_ops.adam_rows(
            p,
            state["exp_avg"],
            state["exp_avg_sq"],
            grad.dz.contiguous(),
            grad.hidden.contiguous(),
            **_adam_options(group, state),
        )

    @torch.no_grad()
    def step_rows(
        self,
        weight: Tensor,
        bias: Tensor,
        dz: Tensor,
        hidden: Tensor,
        targets: Tensor,
        *,
        coefficient: float,
    ) -> tuple[Tensor, Tensor]:
        """Update a head and its moments in one pass; see :func:`head_ops.step_rows`.

        Counts as the step of these two parameters: leave their ``.grad`` None in :meth:`step`.

        Args:
            weight, bias: Parameters of this optimizer, in one group.
            dz, hidden, targets, coefficient: As in :func:`head_ops.step_rows`.

        Returns:
            As :func:`head_ops.step_rows`.
        """
        group = next(g for g in self.param_groups if any(p is weight for p in g["params"]))
        state, bias_state = (self._factored_state(p, group) for p in (weight, bias))
        state["step"] += 1
        bias_state["step"] += 1
        return head_ops.step_rows(
            weight,
            bias,
            state["exp_avg"],
            state["exp_avg_sq"],
            bias_state["exp_avg"],
            bias_state["exp_avg_sq"],
            dz,
            hidden,
            targets,
            coefficient=coefficient,
            **_adam_options(group, state),
        )

    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        fused = _fuses(params, group)
        states = [self._state_of(p) for p in params]
        for p, state in zip(params, states, strict=True):
            if fused:
                state["step"] = state["step"].to(p.device, torch.float32)
            elif group["capturable"]:
                state["step"] = state["step"].to(p.device)
        grads = [_dense_grad(p) for p in params]
        moments = {
            # bfloat16 moments of a parameter that has a dense gradient this time.
            name: [state[name].to(p.dtype) for p, state in zip(params, states, strict=True)]
            for name in ("exp_avg", "exp_avg_sq")
        }
        rows: list[Tensor] = []
        kept: list[list[Tensor]] = []
        if group["row_sparse"]:
            rows = [_rows_with_gradient(g) for g in grads]
            kept = [[x.clone() for x in xs] for xs in (params, *moments.values())]
        adam(
            params,
            grads,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            [],
            [state["step"] for state in states],
            foreach=bool(group["foreach"]),
            capturable=group["capturable"],
            fused=fused,
            has_complex=any(p.is_complex() for p in params),
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        for new, old in zip((params, *moments.values()), kept, strict=False):
            for x, before, moved in zip(new, old, rows, strict=True):
                x.copy_(torch.where(moved, x, before))
        for name, tensors in moments.items():
            for state, moment in zip(states, tensors, strict=True):
                if moment is not state[name]:
                    state[name].copy_(moment)

    def reset(self) -> None:
        """Forget moments and step counts, for a new task; their memory is kept."""
        for state in self.state.values():
            for value in state.values():
                value.zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, ``torch.optim.Adam`` or ``torch.optim.AdamW`` saved.

        Options that those do not have stay as they are.

        Raises:
            CheckpointError: The state is another optimizer's, or one of ``amsgrad=True``.
        """
        for group in state_dict["param_groups"]:
            missing = {"betas", "eps"} - set(group)
            if missing or group.get("amsgrad"):
                found = f"without {', '.join(sorted(missing))}" if missing else "with amsgrad=True"
                raise CheckpointError(
                    f"the optimizer state has a group {found}; load one of FactoredAdam, or of "
                    "torch.optim.Adam or AdamW with amsgrad=False"
                )
        own = [{name: group[name] for name in _OWN_OPTIONS} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, options in zip(self.param_groups, own, strict=True):
            for name, value in {**self.defaults, **options}.items():
                group.setdefault(name, value)
