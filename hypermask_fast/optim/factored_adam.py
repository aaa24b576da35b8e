"""Adam and AdamW that take a gradient of low rank as its factors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import ConfigError
from hypermask_fast.head import cuda, passes
from hypermask_fast.head.types import Head, HeadGrads, HeadStep, Moments
from hypermask_fast.optim.cuda import begin, takes_table
from hypermask_fast.optim.dense import laid_out, step_dense
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.groups import (
    OWN_OPTIONS,
    adam_options,
    check_group,
    on_device,
    takes_factors,
)
from hypermask_fast.optim.in_backward import PendingUpdate, Verdict
from hypermask_fast.optim.loaded import MOMENTS, check_state
from hypermask_fast.optim.rows import is_table
from hypermask_fast.optim.shares import Share, step_shares
from hypermask_fast.tables import pad_rows


def _moments(state: dict[str, Tensor]) -> Moments:
    return Moments(state["exp_avg"], state["exp_avg_sq"])


def _count(state: dict[str, Tensor], finite: Tensor | None) -> None:
    state["step"] += 1 if finite is None else finite


class FactoredAdam(Optimizer):
    """Adam (Kingma and Ba 2015), or AdamW, for parameters of which some have a FactoredGrad.

    A parameter whose ``.grad`` is a :class:`~hypermask_fast.optim.factored_grad.FactoredGrad` is
    updated in one pass over its rows, and its gradient is never made dense; all others are updated
    by PyTorch's own Adam, fused where ``foreach`` and ``fused`` are None. A parameter without a
    gradient is left alone. Arithmetic, state and ``state_dict`` are those of ``torch.optim.Adam``
    and ``torch.optim.AdamW``: each can load what the other saved.

    With ``step_in_backward`` the backward pass of ``learner.losses(..., optimizer=this).total``
    updates the head of the learner's hypernetwork in the one pass over it that forms its gradient,
    which is never kept; :meth:`step` does the rest. It takes the ordinary steps, with 28 bytes of
    memory traffic for a float32 parameter of the head, whatever the number of tasks. Until the
    backward pass the output regularizer is 0 in the losses, and missing in their total. A backward
    pass whose gradient is not finite changes nothing, nor does the :meth:`step` after it; one that
    accumulates nothing in the head updates nothing. There is no gradient to clip, accumulate or
    unscale: what tries to raises.

    Options of a parameter group beside those below:
        row_sparse: True for a table of embeddings, one a row: a row whose gradient is exactly zero
            in a step keeps its values and moments, so it moves neither by momentum nor by weight
            decay. The step count is the table's, as in ``torch.optim.SparseAdam``. Default False;
            tables of a learner are held so in any case, with any optimizer.

    Args:
        params: Parameters, named parameters, or groups of them.
        lr: Learning rate, a number or a 0-d tensor. Default 1e-3.
        betas: Decay rates of the two moments. Default (0.9, 0.999).
        eps: Added to the root of the second moment. Default 1e-8.
        weight_decay: L2 penalty, or with ``decoupled_weight_decay`` AdamW's decay. Default 0.
        decoupled_weight_decay: AdamW rather than Adam. Default False.
        maximize: Ascend. Default False.
        foreach, fused: As in ``torch.optim.Adam``.
        capturable: As in ``torch.optim.Adam``. On a GPU the update of factors can always be
            captured; a learning rate that is to change between replays must be a tensor there.
        step_in_backward: See above. Default False.
        moments_dtype: torch.bfloat16 halves the memory of both moments of the parameters with a
            FactoredGrad. Default None: the parameter's dtype. The cost, on random gradients: the
            distance moved is off by 0.3 % after 50 steps and by 5 % after 1500 (in float32 by
            0.003 %), for a second moment stays as it is where it changes by less than 2^-9 a step.

    Raises:
        ConfigError: An option has a value that cannot be used.
    """

    _pending: PendingUpdate

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
        step_in_backward: bool = False,
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
            "step_in_backward": step_in_backward,
        }
        self._pending = PendingUpdate()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also for what load_state_dict sets.
        self.__dict__.setdefault("_pending", PendingUpdate())
        super().__setstate__(state)

    def __copy__(self) -> FactoredAdam:
        """Return an optimizer of the same parameters with a state of its own."""
        shared = {id(p): p for group in self.param_groups for p in group["params"]}
        return copy.deepcopy(self, shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own; those not given are the defaults.

        Raises:
            ConfigError: An option has a value that cannot be used.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    @property
    def steps_in_backward(self) -> bool:
        """Whether a backward pass updates parameters, of one group at least."""
        return any(group["step_in_backward"] for group in self.param_groups)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What GradScaler asks of an optimizer before it steps."""
        if self.steps_in_backward:
            raise RuntimeError(
                "a GradScaler is to step this optimizer, and with step_in_backward=True the "
                "backward pass has applied the scaled gradient already; use bfloat16 without a "
                "scaler, or step_in_backward=False"
            )
        return False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Called first, with gradients enabled, to evaluate the loss; optional.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            RuntimeError: With ``step_in_backward`` no backward pass updated a head, in the closure
                or since the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.steps_in_backward and self._pending.finite is None:
            raise RuntimeError(
                "step_in_backward is True and no backward pass updated a head since the last "
                "step(); call losses(..., optimizer=this).total.backward() of the learner whose "
                "parameters these are, or build FactoredAdam with step_in_backward=False"
            )
        verdict = self._pending.end()
        if isinstance(verdict, bool):
            if not verdict:
                return loss
            verdict = None
        finite = None if verdict is None else verdict.finite
        shares: list[Share] = []
        for group in self.param_groups:
            dense: list[Tensor] = []
            tables: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"a parameter of shape {tuple(p.shape)} has a sparse gradient; make it "
                        "dense, and set row_sparse=True in its group"
                    )
                if takes_factors(p, group):
                    self._step_factored(p, group, finite)
                else:
                    (tables if self.holds_rows(p, group) else dense).append(p)
            shares.append(Share(group, dense, tables))
        step_shares(shares, self._state_of, verdict)
        return loss

    @staticmethod
    def holds_rows(p: Tensor, group: dict[str, Any]) -> bool:
        """Return whether :meth:`step` itself holds the rows of a table without a gradient."""
        return is_table(p, group) and takes_table(p, group)

    def forget_update(self) -> None:
        """Let no :meth:`step` follow the last backward pass; what it updated stays so."""
        self._pending.end()

    def _state_of(self, p: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            double = torch.get_default_dtype() == torch.float64
            state["step"] = torch.tensor(0.0, dtype=torch.float64 if double else torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        for name in MOMENTS:
            state[name] = laid_out(pad_rows(state[name], p), p)
        return state

    def _factored_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        dtype = p.dtype if group["moments_dtype"] is None else torch.bfloat16
        state = self._state_of(p, dtype)
        for name in MOMENTS:
            # load_state_dict gives moments the parameter's dtype.
            if state[name].dtype != dtype or not state[name].is_contiguous():
                state[name] = state[name].to(dtype).contiguous()
        state["step"] = state["step"].to(p.device if on_device(p, group) else "cpu")
        return state

    def _step_factored(self, p: Tensor, group: dict[str, Any], finite: Tensor | None) -> None:
        state = self._factored_state(p, group)
        grad = p.grad
        assert isinstance(grad, FactoredGrad)
        _count(state, finite)
        options = adam_options(p, group, state["step"], finite)
        head = Head(p, moments=_moments(state))
        passes.adam_rows(HeadStep(head, grad.dz, grad.hidden, adam=options))

    def _head_of(self, step: HeadStep) -> tuple[Head, dict[str, Any], list[dict[str, Tensor]]]:
        """Return a step's head with its moments, the weight's group, and the states that count."""
        weight, bias, *_ = step.head
        assert bias is not None
        group = self._group_of(weight)
        assert group is not None
        states = [self._factored_state(weight, group)]
        head = Head(weight, bias, _moments(states[0]))
        if step.bias_grad is None:
            states.append(self._factored_state(bias, group))
            head = head._replace(bias_moments=_moments(states[1]))
        return head, group, states

    @torch.no_grad()
    def step_rows(self, step: HeadStep, *, finite: Tensor | None = None) -> HeadGrads:
        """Update a head and its moments in one pass; see :mod:`hypermask_fast.head.passes`.

        Counts as the step of these two parameters: leave their ``.grad`` None in :meth:`step`.

        Args:
            step: Of a head whose weight is a parameter of this optimizer; moments and Adam's
                options come from it. With ``bias_grad`` the bias is left alone.
            finite: 0-d bool; where it is False, the step is not taken. Default: it is.
        """
        head, group, states = self._head_of(step)
        for state in states:
            _count(state, finite)
        options = adam_options(head.weight, group, states[0]["step"], finite)
        return passes.step_rows(step._replace(head=head, adam=options))

    def _group_of(self, p: Tensor) -> dict[str, Any] | None:
        groups = (g for g in self.param_groups if any(q is p for q in g["params"]))
        return next(groups, None)

    def updates_in_backward(self, p: Tensor) -> bool:
        """Return whether a parameter is in a group with ``step_in_backward``, and trains."""
        group = self._group_of(p)
        return p.requires_grad and group is not None and group["step_in_backward"]

    def holds(self, p: Tensor) -> bool:
        """Return whether a parameter is one of this optimizer."""
        return self._group_of(p) is not None

    @torch.no_grad()
    def update_in_backward(
        self, step: HeadStep, *, factor: float = 1.0, flags: Tensor | None = None
    ) -> HeadGrads:
        """Take a head's part of a step, for a backward pass.

        Where dz is not finite nothing is changed: on a CPU by a look at it, elsewhere without one.
        A bias in another group is stepped with the options of that group. One that is frozen or no
        parameter of this optimizer is left alone: give ``bias_grad`` for its gradient.

        Args:
            step: As in :meth:`step_rows`.
            factor: Multiplies the coefficient, where :func:`hypermask_fast.head.cuda.takes` the
                head. Default 1.
            flags: Those of dz that :mod:`hypermask_fast.kernels.finite` knows. Default: none.

        Returns:
            As :meth:`step_rows`; zeros where a look found that nothing is to be changed.

        Raises:
            RuntimeError: The last update was not followed by :meth:`step`, or there is a gradient
                beside this one.
        """
        weight, bias, *_ = step.head
        assert bias is not None
        group, bias_group = self._group_of(weight), self._group_of(bias)
        assert group is not None
        updated = (weight, bias) if step.bias_grad is None else (weight,)
        if self._pending.finite is not None or any(p.grad is not None for p in updated):
            raise RuntimeError(
                "a second backward pass came before step(), and with step_in_backward=True each is "
                "an update by itself; call step() and zero_grad() after every backward(), or "
                "accumulate with step_in_backward=False"
            )
        alone = step.bias_grad is None and bias_group is not group
        if alone:
            step = step._replace(bias_grad=torch.empty_like(bias))
        verdict: bool | Verdict
        if cuda.takes(weight):
            head, group, states = self._head_of(step)
            begun = begin(step, group, [state["step"] for state in states], factor, flags)
            verdict = Verdict(begun.finite, begun.taken, begun.skipped)
            self._pending.begin(updated, verdict)
            options = adam_options(weight, group, states[0]["step"], begun.finite)
            options = options._replace(scalars=begun.scalars)
            whole = step._replace(head=head, adam=options, coefficient=begun.coefficient)
            grads = passes.step_rows(whole)
        else:
            # The extremes are finite where all is, and one pass finds both.
            finite = torch.stack(step.dz.aminmax()).isfinite().all()
            stays = on_device(weight, group)
            verdict = Verdict.of(finite) if stays else bool(finite)
            self._pending.begin(updated, verdict)
            if verdict is False:
                if step.bias_grad is not None and not alone:
                    step.bias_grad.zero_()
                squares = step.hidden.new_zeros((), dtype=torch.float64)
                return HeadGrads(torch.zeros_like(step.hidden), squares)
            grads = self.step_rows(step, finite=finite if stays else None)
        if alone:
            assert bias_group is not None
            bias.grad = step.bias_grad
            taken = verdict if isinstance(verdict, Verdict) else None
            step_dense([bias], [self._state_of(bias)], bias_group, taken)
            self._pending.begin(updated, verdict)
        return grads

    def reset(self) -> None:
        """Forget moments and step counts, for a new task; their memory is kept.

        An update in a backward pass that no :meth:`step` followed is left as it is.
        """
        self.forget_update()
        for state in self.state.values():
            for value in state.values():
                value.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with rows of moments for rows that a table got since the last step."""
        for group in self.param_groups:
            for p in group["params"]:
                if self.state.get(p):
                    self._state_of(p)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, ``torch.optim.Adam`` or ``torch.optim.AdamW`` saved.

        Options that those do not have, and ``capturable``, stay as they are; a learning rate that
        is a tensor stays that tensor, and takes the value.

        Raises:
            CheckpointError: The state is another optimizer's, one of ``amsgrad=True``, or of
                parameters of other shapes; nothing was changed.
        """
        check_state(state_dict, self.param_groups)
        own = [{name: group[name] for name in OWN_OPTIONS} for group in self.param_groups]
        rates = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, options, lr in zip(self.param_groups, own, rates, strict=True):
            group.update(options)
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            if isinstance(lr, Tensor):
                group["lr"] = lr.fill_(group["lr"])
