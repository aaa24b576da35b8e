"""Compiles what the real launchers launch for GPUs that are not here, and reports what came out.

Run as a program, without ``TRITON_INTERPRET``: ``python tests/kernels/compile_gate.py --targets
sm_90 [--all]`` prints one JSON object a compiled kernel. Tensors are fake CUDA tensors, a launch
becomes a compilation, and a stub driver names the target.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_ROOT = Path(__file__).parents[2]


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
def _compile_only() -> Iterator[None]:
    interface = triton.runtime.jit.KernelInterface
    launch = interface.__getitem__
    interface.__getitem__ = lambda kernel, grid: lambda *a, **k: kernel.warmup(*a, grid=grid, **k)
    try:
        # A torch without CUDA cannot switch devices.
        device = mock.patch.object(torch.cuda, "device", nullcontext)
        with FakeTensorMode(allow_non_fake_inputs=True), _Pointers(), device:
            yield
    finally:
        interface.__getitem__ = launch


def _usage(path: str) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes of its stack."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-res-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    return int(registers), int(stack)


def _facts(target: str, metadata: Any, files: dict[str, str]) -> dict[str, Any]:
    from tests.kernels.barriers import bare_barriers

    facts: dict[str, Any] = {"shared": metadata["shared"]}
    for name, path in files.items():
        if name.endswith(".cubin"):
            facts["registers"], facts["spills"] = _usage(path)
        elif name.endswith(".ptx"):
            # Each becomes HGMMA of the machine code, which takes as long to disassemble as to make.
            facts["wgmma"] = Path(path).read_text().count("wgmma.mma_async")
        elif name.endswith(".amdgcn"):
            text = Path(path).read_text()
            found = re.findall(r"\.(vgpr_spill_count|vgpr_count):\s*(\d+)", text)
            counts = {key: int(value) for key, value in found}
            facts |= {"registers": counts["vgpr_count"], "spills": counts["vgpr_spill_count"]}
            facts["bare_barriers"] = bare_barriers(text)
    return facts


def _compile(targets: Sequence[str], every: bool, rooms: Sequence[str] | None) -> int:
    from benchmarks.launches.catalogue import launch_modules
    from hypermask_fast.kernels import tuning

    seen: list[Any] = []
    triton.knobs.compilation.listener = lambda *, src, metadata, metadata_group, times, cache_hit: (
        seen.append((src.name, metadata, metadata_group))
    )
    launches = {
        f"{stem}/{name}": launch
        for stem, module in launch_modules().items()
        for name, launch in module.LAUNCHES.items()
        if rooms is None or module.__name__.split(".")[-2] in rooms
    }
    failed = 0
    for index, target in enumerate(TARGETS):
        if target not in targets:
            continue
        driver.set_active(_Driver(TARGETS[target], index))
        for name, launch in launches.items():
            for number, config in enumerate(launch.configs if every else launch.configs[:1]):
                row = {"target": target, "launch": name, "config": dict(config)}
                try:
                    with ExitStack() as stack:
                        stack.enter_context(_compile_only())
                        stack.enter_context(tuning.forced(launch.kernel, config))
                        with torch.device("cuda"):
                            run = launch.make()
                        seen.clear()
                        run()
                except Exception:
                    failed += 1
                    print(json.dumps({**row, "failed": traceback.format_exc(limit=-3)}), flush=True)
                    continue
                for function, metadata, files in seen:
                    facts = _facts(target, metadata, files)
                    default = {"kernel": function, "default": number == 0}
                    print(json.dumps({**row, **default, **facts}), flush=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_90", "gfx942"])
    parser.add_argument("--all", action="store_true", help="all shipped configurations")
    parser.add_argument("--rooms", nargs="+", help="of benchmarks/launches (all)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    sys.exit(min(1, _compile(arguments.targets, arguments.all, arguments.rooms)))
