"""What the output regularizer keeps of earlier tasks, and which of them a step looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hypermask_fast.backends.choice import backend
from hypermask_fast.console.words import size
from hypermask_fast.counters import REGULARIZED, counter_permutation
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.head.types import FrozenHead
from hypermask_fast.held import HoldsTensors
from hypermask_fast.hypernetworks.full import Hypernetwork

_FROZEN = tuple(f"frozen_{name}" for name in FrozenHead._fields)
_COPY = "frozen_hypernetwork"


class _LogitsOf(nn.Module):
    """A hypernetwork whose call gives its logits."""

    def __init__(self, hypernetwork: Hypernetwork) -> None:
        super().__init__()
        self.hypernetwork = hypernetwork

    def forward(self, ids: Tensor) -> Tensor:
        return self.hypernetwork.logits(ids)


def _shared_parameters(hypernetwork: Hypernetwork) -> dict[str, Tensor]:
    """Return all parameters but the tasks' embeddings, by name."""
    named = hypernetwork.named_parameters()
    return {name: p.detach() for name, p in named if p is not hypernetwork.embeddings}


class KeptOutputs(HoldsTensors):
    """The earlier tasks of a hypernetwork's output regularizer, as the current task found them.

    Args:
        form: "full": the logits (t, N) of t earlier tasks in the head's dtype. "bfloat16": the
            logits in half of float32's memory; a logit that rounds to what is kept of it leaves no
            residual.
            "frozen_head": a copy of the head (N, H), from which residuals are computed by products
            of sizes that do not depend on t; smaller than the logits where t > H, and faster where
            t is more than about 2 H. "recomputed": a copy of the hypernetwork but for the tasks'
            embeddings, which must not change; it gives the logits anew in each step.
        count: Earlier tasks in each step's regularizer, drawn without replacement, the same ones
            for the same seed, task and step: their mean is an unbiased estimate of the mean over
            all. None: all.

    Attributes:
        ids: int64 (1 + t,), the current task and the earlier ones; None outside a task.
        divided: Names of tensors of :meth:`state` that have a part for each row of the head, with
            the dimension that it is along.
        free: Sets, in logits (k, N) of the tasks int64 (k,), those to NaN that need not be kept;
            None: all are kept. A learner sets it.
    """

    held = ("ids", "logits", *_FROZEN, _COPY)
    divided: ClassVar[Mapping[str, int]] = {"targets": 1, "frozen_weight": 0, "frozen_bias": 0}
    ids: Tensor | None
    logits: Tensor | None
    frozen_hypernetwork: Tensor | None
    free: Callable[[Tensor, Tensor], None] | None = None

    def __init__(self, form: str = "full", count: int | None = None) -> None:
        super().__init__()
        self.form, self.count = form, count
        self._seed = torch.initial_seed()
        self._host_ids: list[int] = []
        self.clear()

    @property
    def earlier(self) -> int:
        """t, the number of earlier tasks."""
        return 0 if self.ids is None else len(self.ids) - 1

    @property
    def samples(self) -> bool:
        """Whether a step looks at some of the earlier tasks, which depend on its number."""
        return self.count is not None and self.count < self.earlier

    def check(self, hypernetwork: Hypernetwork) -> None:
        """Raise ConfigError where the form needs another head."""
        if self.form == "frozen_head" and not hypernetwork.can_update:
            raise ConfigError(
                f"targets='frozen_head' and the hypernetwork is a {type(hypernetwork).__name__} of "
                f"{hypernetwork.head.weight.dtype}; use head='full' with float32 or float64, or "
                "targets='bfloat16'"
            )

    def record(self, hypernetwork: Hypernetwork, task: int, earlier: Sequence[int]) -> None:
        """Keep what the hypernetwork emits for the earlier tasks."""
        self.clear()
        self._set_ids([task, *earlier], hypernetwork.embeddings.device)
        assert self.ids is not None
        if self.form == "frozen_head":
            for name, value in zip(_FROZEN, hypernetwork.frozen(self.ids) or (), strict=False):
                setattr(self, name, value)
        elif self.form == "recomputed":
            if earlier:
                shared = _shared_parameters(hypernetwork).values()
                self.frozen_hypernetwork = torch.cat([p.flatten() for p in shared])
        else:
            dtype = torch.bfloat16 if self.form == "bfloat16" else None
            # Steps with a sample run in PyTorch, whose logits a kernel's do not equal to the bit.
            with backend("reference") if self.samples else nullcontext():
                self.logits = hypernetwork.kept(self.ids, dtype)
            if self.free is not None and self.logits is not None:
                self.free(self.logits, self.ids[1:])

    def clear(self) -> None:
        """Forget the earlier tasks."""
        for name in self.held:
            setattr(self, name, None)

    def _set_ids(self, ids: Sequence[int], device: torch.device) -> None:
        self.ids, self._host_ids = torch.tensor(ids, device=device), list(ids)

    def _recorded_ids(self) -> Tensor:
        if self.ids is None:
            raise RuntimeError(
                "what the earlier tasks keep is not known, for begin_task() records it and a "
                "state_dict does not hold it; call abandon_task(restore=False) and begin_task(), "
                "or continue from what Trainer.state() returned"
            )
        return self.ids

    def current(self) -> Tensor:
        """Return the current task, int64 (1,), on the hypernetwork's device.

        Raises:
            RuntimeError: Nothing was recorded.
        """
        return self._recorded_ids()[:1]

    def _frozen(self) -> FrozenHead | None:
        frozen = FrozenHead(*(getattr(self, name) for name in _FROZEN))
        return None if frozen.gram is None else frozen

    def _sample(self, step: int | Tensor) -> Tensor | None:
        """Return the places in :attr:`ids` of a step's earlier tasks, ascending; None for all."""
        if not self.samples:
            return None
        assert self.count is not None
        assert self.ids is not None
        words = (self._seed, self._host_ids[0], REGULARIZED, step)
        order = counter_permutation(self.earlier, *words, device=self.ids.device)
        return order[: self.count].sort().values + 1

    @torch.no_grad()
    def _recomputed(self, hypernetwork: Hypernetwork, ids: Tensor) -> Tensor:
        """Return what the copy gives, (t, N), for the earlier tasks in ``ids`` (1 + t,)."""
        assert self.frozen_hypernetwork is not None
        shared = _shared_parameters(hypernetwork)
        parts = self.frozen_hypernetwork.split([p.numel() for p in shared.values()])
        copies = {
            f"hypernetwork.{name}": part.view_as(p)
            for (name, p), part in zip(shared.items(), parts, strict=True)
        }
        logits = functional_call(_LogitsOf(hypernetwork), copies, (ids,))[1:].contiguous()
        if self.free is not None:
            self.free(logits, ids[1:])
        return logits

    def at(
        self,
        step: int | Tensor,
        hypernetwork: Hypernetwork | None = None,
        *,
        alone: bool = False,
    ) -> tuple[Tensor, Tensor | FrozenHead | None, Tensor | None]:
        """Return what :meth:`Hypernetwork.forward` takes in a step: ids, what is kept, and rows.

        Args:
            step: Its number; an integer tensor is not read back to the host.
            hypernetwork: For the form "recomputed": the one that was recorded.
            alone: Of a sample, return the tasks of it as all ids, and no rows: less is computed,
                and the logits may not have the bits of those that were kept. Default False.

        Raises:
            RuntimeError: Nothing was recorded.
        """
        ids, sample = self._recorded_ids(), self._sample(step)
        rows = None if sample is None else F.pad(sample, (1, 0))
        ids = ids if rows is None or not alone else ids[rows]
        kept = self._frozen() if self.logits is None else self.logits
        if self.frozen_hypernetwork is not None:
            assert hypernetwork is not None
            kept = self._recomputed(hypernetwork, ids)
            if sample is None or alone:
                return ids, kept, None
        if sample is None or kept is None:
            return ids, kept, None
        if isinstance(kept, FrozenHead):
            kept = kept._replace(hidden=kept.hidden[sample - 1])
        else:
            kept = kept[sample - 1]
        return ids, kept, None if alone else rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move everything, but keep the dtype of what has one of its own."""
        names = ("frozen_gram", "logits") if self.form == "bfloat16" else ("frozen_gram",)
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            if value is not None and self.ids is not None:
                setattr(self, name, value.to(self.ids.device))
        return self

    def describe(self, hypernetwork: Hypernetwork) -> str:
        """Return a line about the memory it takes while a task is learned."""
        outputs, each = hypernetwork.own_outputs, hypernetwork.head.weight.element_size()
        width = hypernetwork.head.in_features
        bytes_of, per = {
            "full": (outputs * each, "for each earlier task"),
            "bfloat16": (outputs * 2, "for each earlier task, in bfloat16"),
            "frozen_head": (
                outputs * (width + 1) * each + 8 * width**2,
                "for a frozen head, whatever the number of earlier tasks",
            ),
            "recomputed": (
                sum(p.nbytes for p in _shared_parameters(hypernetwork).values()),
                "for a copy of the hypernetwork, whatever the number of earlier tasks",
            ),
        }[self.form]
        line = f"targets while training: {size(bytes_of)} {per}"
        return line if self.count is None else f"{line}; {self.count} of them in each step"

    def extra_repr(self) -> str:
        return f"form={self.form!r}, count={self.count}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values for :meth:`load`."""
        names = {"targets": "logits", **{name: name for name in (*_FROZEN, _COPY)}}
        tensors = {key: getattr(self, name) for key, name in names.items()}
        ids = None if self.ids is None else self._host_ids
        state = {"ids": ids, "targets": self.form, "sampling_seed": self._seed}
        return {key: value for key, value in tensors.items() if value is not None}, state

    def load(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], device: torch.device
    ) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            CheckpointError: It was saved within a task by a learner with another form, or tensors
                are missing; nothing was changed.
        """
        form = state.get("targets", "full")
        if len(state["ids"] or ()) > 1 and form != self.form:
            raise CheckpointError(
                f"the checkpoint keeps its targets as {form!r} and the learner as {self.form!r}; "
                f"build it with targets={form!r}"
            )
        needed = {"frozen_head": _FROZEN, "recomputed": (_COPY,)}.get(form, ("targets",))
        missing = [name for name in needed if name not in tensors]
        if missing and len(state["ids"] or ()) > 1:
            raise CheckpointError(
                f"the state is of a task after others and lacks {', '.join(missing)}, what those "
                "keep; restore the checkpoint's files, or begin the task anew"
            )
        self.clear()
        self._seed = state.get("sampling_seed", self._seed)
        if state["ids"] is not None:
            self._set_ids(state["ids"], device)
        for key in ("targets", *_FROZEN, _COPY):
            if key in tensors:
                setattr(self, "logits" if key == "targets" else key, tensors[key].to(device))
