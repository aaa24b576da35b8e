"""Stand-ins for CUDA graphs: one that finds what a graph cannot hold, one that replays on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hypermask_fast.head import cuda
from hypermask_fast.hypernetworks import trunk
from hypermask_fast.kernels import ops
from hypermask_fast.kernels.head import logits as mask_logits
from hypermask_fast.kernels.head.hidden_grad import hidden_grad
from hypermask_fast.masks import cuda as mask_weights
from hypermask_fast.methods import totals
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.optim import cuda as tables
from hypermask_fast.scenarios import gather
from hypermask_fast.training.graph import Captured, CudaGraphs


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


_NO_LAUNCH = {
    *("view", "t", "transpose", "permute", "detach", "alias", "as_strided", "select", "slice"),
    *("unsqueeze", "squeeze", "expand", "split", "split_with_sizes", "unbind", "_unsafe_view"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_record_function_enter_new", "_record_function_exit"),
}


class OnDevice(TorchDispatchMode):
    """Refuses a tensor of the host; on the meta device every read of a value raises by itself.

    Attributes:
        operations: All of PyTorch.
        captured: Those within a capture that a GPU would launch something for, by name.
    """

    captures = False
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.captured: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The meta device lacks this one; CUDA has it, and captures it.
        fused = func is torch.ops.aten._fused_adam_.tensor_lr
        out = None if fused else func(*args, **kwargs)
        self.operations += 1
        name = func.overloadpacket.__name__
        if self.captures and name not in _NO_LAUNCH:
            self.captured[name] += 1
        if self.captures and any(x.is_cpu for x in tensors_in((args, kwargs, out))):
            raise RuntimeError(f"{func} has a tensor of the host")
        return out


def _specialized(value: Any) -> object:
    """What of an argument chooses the variant of a kernel that is compiled."""
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, int) and not isinstance(value, bool):
        return value == 1, value % 16 == 0, value >= 2**31
    return repr(value)


def launches_on_meta(
    patch: pytest.MonkeyPatch, variants: set[object] | None = None
) -> Counter[str]:
    """Send the meta device's tensors to the kernels; check and count launches in place of them.

    Args:
        patch: Takes it back.
        variants: Is given those of kernels that are launched.
    """
    launched: Counter[str] = Counter()

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched[kernel.__name__] += 1
        if variants is not None:
            chosen = tuple((name, _specialized(value)) for name, value in options.items())
            variants.add((kernel.__name__, tuple(map(_specialized, args)), chosen))
        assert all(size > 0 for size in grid)
        for tensor in tensors_in((args, options)):
            assert tensor.is_meta, f"{kernel.__name__} takes a tensor of the host"

    def uses_kernels(op: str, tensor: Tensor, name: str | None = None, **sizes: int) -> bool:
        return tensor.dtype == torch.float32

    patch.setattr(type(mask_logits._mask_logits_vector_kernel), "run", run)
    patch.setattr(cuda, "takes", lambda weight: uses_kernels("head", weight))
    patch.setattr(cuda, "uses_kernels", uses_kernels)
    patch.setattr(mask_weights, "uses_kernels", uses_kernels)
    patch.setattr(gather, "_on_gpu", lambda images: True)
    patch.setattr(trunk, "_on_gpu", lambda table: table.dtype == torch.float32)
    patch.setattr(totals, "_on_gpu", lambda loss: loss.dtype == torch.float32)
    patch.setattr(cuda, "_runs", lambda loss: True)
    patch.setattr(tables, "_runs", lambda p: p.dtype == torch.float32)
    # What CUDA runs, which on the meta device would be replaced by the shapes alone.
    patch.setattr(ops, "hidden_grad", hidden_grad)
    patch.setattr(ops, "mask_thresholds", ops._thresholds_kernel)
    patch.setattr(ops, "mask_weights", ops._mask_weights_kernel)
    patch.setattr(ops, "mask_weights_backward", ops._mask_weights_backward_kernel)
    return launched


def _refuse_numbers(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a tensor is made from numbers of the host")


@contextmanager
def without_numbers() -> Iterator[None]:
    """Refuse tensors from numbers of the host: they are copied where no mode can see it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _refuse_numbers)
        yield


class MetaGraphs(CudaGraphs):
    """Runs what is captured once, under the eyes of OnDevice; replays do nothing."""

    def __init__(self) -> None:
        self.watch = OnDevice()

    def unavailable(self, device: torch.device) -> str | None:
        return None

    @contextmanager
    def warming_up(self, device: torch.device) -> Iterator[None]:
        with self.watch:
            yield

    def capture(self, run: Callable[[], Losses], device: torch.device) -> Captured:
        self.watch.captures = True
        with self.watch, without_numbers():
            losses = run()
        return Captured(lambda: None, losses)


class Recorder(TorchDispatchMode):
    """Records operations with their tensors, and repeats them on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[tuple[Any, Any, Any, list[Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = {x.untyped_storage().data_ptr() for x in tensors_in((args, kwargs))}
        # A view, or what is written in place, follows its memory by itself.
        made = [
            None if x.untyped_storage().data_ptr() in inputs else x.detach()
            for x in tensors_in(out)
        ]
        self._tape.append((func, args, kwargs, made))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._tape:
            for old, new in zip(made, tensors_in(func(*args, **kwargs)), strict=True):
                if old is not None:
                    old.copy_(new)


class RecordedGraphs(CudaGraphs):
    """A CUDA graph's semantics on a CPU: capturing changes nothing, replaying runs no Python code
    of the step, and every number of the host is that of the capture.

    Args:
        learner, optimizer: What a step changes.
        failing: Where given, a capture raises at the optimizer's step, for this reason.
    """

    def __init__(
        self, learner: HyperMask, optimizer: torch.optim.Optimizer, failing: str = ""
    ) -> None:
        self.learner, self.optimizer, self.failing = learner, optimizer, failing
        self.warm_ups = self.captures = self.replays = 0

    def unavailable(self, device: torch.device) -> str | None:
        return None

    @contextmanager
    def warming_up(self, device: torch.device) -> Iterator[None]:
        self.warm_ups += 1
        yield

    def capture(self, run: Any, device: torch.device) -> Captured:
        self.captures += 1
        tensors = [*self.learner.parameters(), *self.learner.buffers(), run.__self__._position]
        tensors += [v for state in self.optimizer.state.values() for v in state.values()]
        before = [t.detach().clone() for t in tensors]
        generator = torch.get_rng_state()
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            if self.failing:
                patch.setattr(self.optimizer, "step", self._fail)
            try:
                with recorder:
                    losses = run()
            finally:
                torch.set_rng_state(generator)
                with torch.no_grad():
                    for tensor, value in zip(tensors, before, strict=True):
                        tensor.copy_(value)

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return Captured(replay, losses)

    def _fail(self, closure: Any = None) -> None:
        try:
            raise RuntimeError(f"{self.failing} while capturing")
        finally:
            # As the end of a capture does that failed before.
            raise RuntimeError("the capture was invalidated")
