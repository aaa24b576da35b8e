"""Tells what the package finds on this machine, and tests itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from typing import TextIO

import numpy as np
import torch

import hypermask_fast
from hypermask_fast import reference
from hypermask_fast.backends import choice, compiled, proof
from hypermask_fast.errors import ConfigError
from hypermask_fast.native import library
from hypermask_fast.training import graph


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    """Tell what masks and heads run on."""
    if not torch.cuda.is_available():
        return "no CUDA device, so no kernels"
    probe = torch.empty(0, device="cuda")
    return "Triton kernels on CUDA" if choice.may_run("head", probe) else "PyTorch on CUDA"


def _devices() -> list[torch.device]:
    """Return the CUDA devices; where kernels are interpreted and there is none, the CPU."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    return [torch.device("cpu")] if interpreted and choice.HAS_TRITON else []


def _facts() -> list[tuple[str, str]]:
    facts = [
        ("hypermask_fast", hypermask_fast.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    names = ("torch", "triton", "torchvision", "numpy", "safetensors", "matplotlib")
    facts += [(name, _version(name)) for name in names]
    facts.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"))
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    facts.append(("C++ compiler", compiler or "none"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            facts.append((f"cuda:{index}", f"{properties.name}, {memory:.1f} GiB"))
            if choice.HAS_TRITON:
                known = proof.status(torch.device("cuda", index))
                facts.append((f"kernels cuda:{index}", known))
    else:
        facts.append(("cuda", "none"))
    facts.append(("CUDA graph", graph.trial()))
    facts.append(("torch.compile", compiled.trial()))
    facts.append(("head passes", library.status()))
    wanted = choice.requested()
    facts.append(("backend", f"{wanted}: {_kernels()}"))
    return facts


def _percentile_matches_numpy() -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    for p in (0.0, 30.0, 100.0):
        ours = reference.percentile(values, p).item()
        theirs = np.float32(np.percentile(values.numpy().astype(np.float64), p))
        if ours != theirs:
            raise AssertionError(f"percentile {p} is {ours}, numpy's is {theirs}")


def _gradients_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, z = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((3, 5), (4, 5), (4, 5))
    )
    threshold = reference.mask_threshold(z, 30.0)
    if not torch.autograd.gradcheck(
        lambda a, b, c: reference.masked_linear(a, b, None, c, None, threshold), (x, w, z)
    ):
        raise AssertionError("the gradient of masked_linear differs from finite differences")


def _digits_are_whole() -> None:
    from hypermask_fast.scenarios import split_digits

    if len(split_digits()) != 5:
        raise AssertionError("the digits do not make five tasks")


_TESTS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("percentile equals numpy's", _percentile_matches_numpy),
    ("gradients of the masked layer", _gradients_are_right),
    ("digits in the package", _digits_are_whole),
)


def _check_kernels(stream: TextIO) -> int:
    """Check the kernels of each device anew; return how many fail."""
    devices = _devices()
    if not devices:
        raise ConfigError(
            "--kernels checks Triton kernels on CUDA devices and there is none, or no Triton; "
            "leave it out, or set TRITON_INTERPRET=1 to check them interpreted on the CPU"
        )
    failed = 0
    for device in devices:
        record = proof.check(device)
        for name, wrong in record.kernels.items():
            said = f"FAILED {name}: {wrong}" if wrong else f"passed {name}"
            print(f"{f'kernels {device}':<16} {said}", file=stream)
        print(f"{f'kernels {device}':<16} {len(record.kernels)} in {record.seconds} s", file=stream)
        failed += len(record.failed)
    return failed


def examine(stream: TextIO, *, kernels: bool = False) -> int:
    """Write versions, devices and the results of a self-test to ``stream``.

    Args:
        stream: Takes lines.
        kernels: Check the Triton kernels on each device, too, whether or not they were before.

    Returns:
        0 where every test passed, else 1.

    Raises:
        ConfigError: There is no device to check kernels on.
    """
    for name, fact in _facts():
        print(f"{name:<16} {fact}", file=stream)
    failed = 0
    for name, test in _TESTS:
        try:
            test()
        except Exception as error:
            failed += 1
            print(f"self-test        FAILED {name}: {error}", file=stream)
        else:
            print(f"self-test        passed {name}", file=stream)
    if kernels:
        failed += _check_kernels(stream)
    return int(failed > 0)
