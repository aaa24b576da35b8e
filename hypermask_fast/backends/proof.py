"""Whether the kernels were proven on a device: checked once for it and the versions there.

The first use of a kernel on a device runs the self-check of :mod:`hypermask_fast.kernels.selfcheck`
and keeps what it found in the cache folder of the native passes, by device, driver, Triton, torch
and the kernels' sources. An operation of which a kernel failed is PyTorch's from then on.

Code that is traced or captured finds what an earlier use found: nothing is launched beside it. An
operation whose kernels were not proven before is PyTorch's there, too.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import warn_caller
from hypermask_fast.modes import is_followed
from hypermask_fast.native import cache

if TYPE_CHECKING:
    from hypermask_fast.kernels.selfcheck.run import Capture

NEEDED: dict[str, tuple[str, ...]] = {
    "head": (
        *("mask_logits", "hidden_grad", "factored_adam", "earlier_logits", "step_rows"),
        "begin_step",
    ),
    "step_ahead": ("step_ahead",),
    "mask_threshold": ("mask_thresholds",),
    "mask_weights": ("mask_thresholds", "mask_weights", "mask_weights_backward"),
    "top_k": ("top_k", "top_k_backward"),
    "pack": ("pack",),
    "masked_linear": (
        *("masked_linear", "masked_linear_mixed", "masked_linear_input"),
        *("masked_linear_weight", "masked_linear_bias"),
    ),
    "masked_conv2d": (
        *("masked_conv2d", "masked_conv2d_input", "masked_conv2d_weight", "masked_conv2d_bias"),
    ),
    "batch": ("batch",),
    "adam_table": ("adam_table",),
    "trunk": ("trunk", "trunk_backward"),
    "total": ("total", "complete"),
}
"""The kernels that an operation is made of."""

_FORMAT, _SUFFIX = 1, ".json"
_FOLDERS = (cache.chosen_folder, cache.temporary_folder)
_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))
_AGAIN = "`hypermask doctor --kernels` checks them anew"
_NOT_YET = (
    "it was not checked on this device before this was traced or captured; "
    "use it once outside of that"
)


class Record(NamedTuple):
    """What a self-check found.

    Attributes:
        device: Its name.
        kernels: What is wrong with each kernel, "" where nothing is.
        seconds: That it took.
        date: When it was run.
    """

    device: str
    kernels: dict[str, str]
    seconds: float
    date: str

    @property
    def failed(self) -> dict[str, str]:
        return {name: wrong for name, wrong in self.kernels.items() if wrong}


class Machine:
    """What the self-check asks of CUDA."""

    @property
    def capture(self) -> Capture | None:
        """Records a launch as a graph; None where there are none."""
        from hypermask_fast.kernels.selfcheck import run

        return run.captured

    def is_there(self) -> bool:
        """Return whether there is a CUDA device, not only tensors that are said to be on one."""
        return torch.cuda.is_available()

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def versions(self, device: torch.device) -> dict[str, str]:
        """Return what the compiled kernels of a device depend on."""
        import triton

        from hypermask_fast.kernels.device import INTERPRET

        properties = torch.cuda.get_device_properties(device)
        driver = [path.read_text() for path in _DRIVERS if path.exists()]
        asked = getattr(torch._C, "_cuda_getDriverVersion", None)
        if asked is not None:
            driver.append(str(asked()))
        return {
            "device": properties.name,
            "architecture": getattr(properties, "gcnArchName", "")
            or f"{properties.major}.{properties.minor}",
            "driver": " ".join(driver),
            "torch": f"{torch.__version__} {torch.version.cuda or torch.version.hip}",
            "triton": triton.__version__,
            "interpreted": str(INTERPRET.value),
        }


machine = Machine()
"""Replaced in tests."""
_lock = threading.Lock()
_left_out: dict[int | None, dict[str, str]] = {}
"""Why operations are left out, by device. Compiled code is guarded by it."""
_unsaid: dict[int | None, str] = {}


def why_left_out(op: str, device: torch.device, *, forced: bool) -> str | None:
    """Return why an operation's kernels are not to run on a device; None where they are proven.

    Args:
        op: Of :data:`NEEDED`.
        device: A CUDA device.
        forced: Whether kernels were asked for by name: those that cannot be checked now do run.

    Raises:
        DeviceFaultError: A kernel ended the use of the device for this process.
    """
    found = _left_out.get(device.index)
    if found is None:
        # Compiled code only looks: a launch would be traced with it.
        if not torch.compiler.is_compiling():
            found = _proven(device)
        if found is None:
            return None if forced else _NOT_YET
    if not forced and _unsaid and not torch.compiler.is_compiling():
        message = _unsaid.pop(device.index, None)
        if message is not None:
            warn_caller(message)
    return found.get(op)


def _proven(device: torch.device) -> dict[str, str] | None:
    """Return why operations are left out; None where that cannot be told now."""
    with _lock:
        if device.index not in _left_out:
            if not machine.is_there():
                return None
            start = _start(device)
            record = _read(start)
            if record is None:
                if is_followed() or machine.is_capturing():
                    return None
                with stage("checking the kernels on this device"):
                    record = _checked(device, start)
            _left_out[device.index] = _of_operations(record)
            if record.failed:
                _unsaid[device.index] = _warning(record)
        return _left_out[device.index]


def _of_operations(record: Record) -> dict[str, str]:
    found = {}
    for op, kernels in NEEDED.items():
        wrong = [f"{name}: {record.failed[name]}" for name in kernels if name in record.failed]
        if wrong:
            found[op] = f"the self-check of its kernels failed on {record.device} ({wrong[0]})"
    return found


def _warning(record: Record) -> str:
    wrong = "; ".join(f"{name}: {why}" for name, why in record.failed.items())
    operations = ", ".join(_of_operations(record))
    return (
        f"kernels failed their self-check on {record.device} and are left out ({wrong}); PyTorch "
        f"on CUDA runs {operations} in their place, slower; {_AGAIN}"
    )


def _start(device: torch.device) -> str:
    """Return how the name of the record begins that holds for a device as it is now."""
    from hypermask_fast.kernels.selfcheck import run

    versions = {**machine.versions(device), "kernels": run.digest(), "format": str(_FORMAT)}
    text = json.dumps(versions, sort_keys=True)
    return f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:20]}-"


def _parsed(path: Path) -> Record | None:
    """Return the record of a file, whose bytes are those that its name tells; None: of no use."""
    from hypermask_fast.kernels.selfcheck import run

    try:
        record = Record(**json.loads(path.read_bytes()))
        return record if record.kernels.keys() == run.KERNELS.keys() else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _read(start: str) -> Record | None:
    for folder in _FOLDERS:
        with suppress(cache.UnusableFolderError):
            path = cache.find(folder(make=False), start, _SUFFIX)
            record = None if path is None else _parsed(path)
            if record is not None:
                return record
    return None


def _run(device: torch.device, name: str, together: bool) -> Record:
    """Check the kernels in a thread that has none of this one's streams, modes and autocast."""
    from hypermask_fast.kernels.selfcheck import run

    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(1) as alone:
            capture = None if device.type == "cpu" else machine.capture
            kernels = alone.submit(run.check, device, capture=capture, together=together).result()
    except torch.OutOfMemoryError:
        kernels = dict.fromkeys(run.KERNELS, "the device has no room to check it")
    date, seconds = time.strftime("%Y-%m-%d %H:%M"), round(time.monotonic() - begun, 1)
    return Record(name, kernels, seconds, date)


class _NotToKeepError(Exception):
    """What was found is of this process."""


def _checked(device: torch.device, start: str, *, anew: bool = False) -> Record:
    """Run the self-check, in one process at a time, and keep what it finds.

    Raises:
        DeviceFaultError: A kernel ended the use of the device for this process.
    """
    made: Record | None = None
    name = machine.versions(device)["device"]

    def write(path: Path) -> None:
        nonlocal made
        made = made or _run(device, name, together=not anew)
        # Where none does, it is more likely the machine: without a compiler, or without room.
        if all(made.kernels.values()):
            raise _NotToKeepError
        path.write_text(json.dumps(made._asdict()))

    def serves(path: Path) -> bool:
        return not anew and _parsed(path) is not None

    for folder in _FOLDERS:
        try:
            path = cache.build(folder(), start, write, _SUFFIX, serves)
        except cache.UnusableFolderError:
            continue
        except _NotToKeepError:
            break
        # Another process may have made it while this one waited.
        made = made or _parsed(path)
        break
    return made or _run(device, name, together=not anew)


def status(device: torch.device) -> str:
    """Return what is known of the kernels of a CUDA device, for people; nothing is run."""
    record = _read(_start(device))
    if record is None:
        return "not checked yet; their first use does, and `hypermask doctor --kernels`"
    found = f"checked on {record.date} in {record.seconds} s"
    if not record.failed:
        return f"{len(record.kernels)} right, {found}"
    wrong = "; ".join(f"{name}: {why}" for name, why in record.failed.items())
    return f"{len(record.failed)} of {len(record.kernels)} left out ({wrong}), {found}"


def check(device: torch.device) -> Record:
    """Check the kernels of a device anew, one after another, and keep what is found.

    Args:
        device: A CUDA device; or the CPU, where the interpreter's are checked, and nothing is kept.
    """
    if device.type == "cpu":
        return _run(device, "the interpreter", together=False)
    record = _checked(device, _start(device), anew=True)
    with _lock:
        _left_out[device.index] = _of_operations(record)
    return record
