"""Compiles what launches launch for GPUs that are not here.

Tensors are fake CUDA tensors, a launch becomes a compilation, and a stub driver names the target.
Not with ``TRITON_INTERPRET``: kernels are then functions of Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.launches.launch import Launch
from benchmarks.static import TARGETS
from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.tuning import Config


class Compiled(NamedTuple):
    """A kernel as a launch would launch it.

    Attributes:
        name: Of its function.
        asm: What the compiler made, by kind: "cubin", "ptx", "amdgcn", "ttgir".
        metadata: Of the compiler: ``shared`` (bytes), ``num_warps``.
        types: Of the arguments, in order, by name: "*fp32", "i32", "constexpr".
        arguments: By name.
        grid: Programs.
    """

    name: str
    asm: Mapping[str, Any]
    metadata: Any
    types: Mapping[str, Any]
    arguments: Mapping[str, Any]
    grid: tuple[int, int, int]


class _Driver:
    """Answers what the JIT asks before a launch; it caches by device, so each target is one."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self._target, self._device = target, device

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0


class _Pointers(TorchFunctionMode):
    """Gives fake tensors an aligned address plus their storage offset."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "data_ptr":
            return 4096 + args[0].storage_offset() * args[0].element_size()
        return func(*args, **(kwargs or {}))


@contextmanager
def compile_only(found: list[Compiled]) -> Iterator[None]:
    """Compile what is launched in a ``with`` block, where new tensors are fake ones.

    Args:
        found: Gets the kernels, in order.
    """
    interface = triton.runtime.jit.KernelInterface
    launch = interface.__getitem__

    def compile_it(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | options
        signature = compiled.src.signature
        sizes = grid(arguments) if callable(grid) else grid
        grid = (*sizes, 1, 1)[:3]
        name, asm = compiled.src.name, compiled.asm
        found.append(Compiled(name, asm, compiled.metadata, signature, arguments, grid))

    interface.__getitem__ = lambda kernel, grid: lambda *a, **k: compile_it(kernel, grid, *a, **k)
    try:
        # A torch without CUDA cannot switch devices.
        device = mock.patch.object(torch.cuda, "device", nullcontext)
        with FakeTensorMode(allow_non_fake_inputs=True), _Pointers(), device:
            yield
    finally:
        interface.__getitem__ = launch


def gpu_of(target: str) -> GPUTarget:
    """Return what Triton calls one of ``TARGETS``."""
    kind, number = ("cuda", int(target[3:])) if target.startswith("sm_") else ("hip", target)
    return GPUTarget(kind, number, 32 if kind == "cuda" else 64)


def use_target(target: str) -> None:
    """Compile for one of ``TARGETS`` from now on."""
    driver.set_active(_Driver(gpu_of(target), TARGETS.index(target)))


def compile_launch(launch: Launch, config: Config) -> list[Compiled]:
    """Return the kernels of a launch, in order; those that make its tensors are not of it.

    Args:
        launch: Its tensors become fake ones.
        config: To compile it with.
    """
    found: list[Compiled] = []
    with ExitStack() as stack:
        stack.enter_context(compile_only(found))
        stack.enter_context(tuning.forced(launch.kernel, config))
        with torch.device("cuda"):
            run = launch.make()
        found.clear()
        run()
    return found
