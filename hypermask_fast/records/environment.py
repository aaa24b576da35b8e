"""What the bits of a run depend on beside its settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hypermask_fast.backends import choice
from hypermask_fast.factories import file_digest, is_factory
from hypermask_fast.native import library
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.distributed.processes import joined
from hypermask_fast.training.settings import TrainingSettings

# They choose the code of libraries that PyTorch calls.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
)


def processor() -> str:
    """Return the model of the CPU, which libraries of linear algebra choose their code by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _of_cpu() -> dict[str, Any]:
    passes = library.load()
    return {
        "device": "cpu",
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        # The name holds a digest of the source, the compiler and the processor.
        "native": "off" if passes is None else Path(passes._name).stem,
        "mkldnn": torch.backends.mkldnn.enabled,
    }


def _of_cuda(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }


def environment(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return what the bits of a run on a device depend on beside its settings, for JSON.

    Of functions of one's own, digests of the files that they are in.
    """
    names = {"network": config.network.name, "scenario": config.scenario.name}
    files = {f"{k}_file": file_digest(name) for k, name in names.items() if is_factory(name)}
    return {**environment_of(config.training, device), **files}


def environment_of(training: TrainingSettings, device: torch.device) -> dict[str, Any]:
    """Return what the bits of training on a device depend on beside settings, for JSON.

    On a CPU the native passes do not depend on the threads; PyTorch's sums do.
    """
    together = joined()
    of_device = {"cpu": _of_cpu, "cuda": lambda: _of_cuda(device)}
    return {
        "hypermask_fast": sys.modules[__name__.partition(".")[0]].__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        **of_device.get(device.type, lambda: {"device": str(device)})(),
        "backend": choice.requested(),
        "graph": training.graph,
        "compile": training.compile,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **({} if together is None else {"processes": together.world}),
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what is not the same in two environments: by name, the values before and now."""
    names = dict.fromkeys((*before, *now))
    absent = {"processes": 1}
    pairs = {n: tuple(one.get(n, absent.get(n)) for one in (before, now)) for n in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
