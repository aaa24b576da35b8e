"""Runs the cases of kernels on a device, and says of each kernel what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

from hypermask_fast.errors import HypermaskError
from hypermask_fast.kernels.captures import capture_pool
from hypermask_fast.kernels.device import INTERPRET
from hypermask_fast.kernels.selfcheck import head, layers, masks, steps
from hypermask_fast.kernels.selfcheck.case import Case, Draw, fault

KERNELS: dict[str, list[Callable[[Draw], Case]]] = {
    **head.CASES,
    **masks.CASES,
    **layers.CASES,
    **steps.CASES,
}
"""The cases of each kernel, by its name in warnings."""

Launch = Callable[[], Sequence[Tensor]]
Capture = Callable[[torch.device, Launch], tuple[Callable[[], None], Sequence[Tensor]]]
"""Records a launch as a CUDA graph; returns its replay and what that overwrites."""

_Launched = tuple[Case, Sequence[Tensor]] | str
"""A case with its first results, or why it could not be launched."""

_THREADS = 8


class DeviceFaultError(HypermaskError, RuntimeError):
    """A kernel ended the use of its device for this process."""


def digest() -> str:
    """Return a digest of the sources of all kernels, and of the table of their configurations."""
    folder, whole = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.glob("*.json")]):
        whole.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:32]


def captured(device: torch.device, launch: Launch) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Record a launch that has run before as a CUDA graph, beside what other threads do."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), capture_pool(stream.device) as pool:
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            found = launch()
        except BaseException:
            # The end of a capture that failed raises once more.
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph.replay, found


def _in_a_line(error: BaseException) -> str:
    # A compiler's error begins with a place, and ends with what is wrong there.
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' ... '.join(dict.fromkeys((lines[0], lines[-1])))}"[:300]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _wrong_replay(
    device: torch.device, capture: Capture, case: Case, found: Sequence[Tensor]
) -> str | None:
    """Return what is wrong with a captured graph: whether a replay gives the same bits again."""
    before = [_bits(result) for result in found]
    replay, results = capture(device, case.launch)
    for result in results:
        result.copy_(torch.full_like(result, 1))
    replay()
    for result, bits in zip(results, before, strict=True):
        if not torch.equal(_bits(result), bits):
            return "the replay of a captured CUDA graph gives other numbers"
    return None


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _launched(device: torch.device, make: Callable[[Draw], Case]) -> _Launched:
    try:
        with torch.no_grad(), _on(device):
            case = make(Draw(device))
            return case, case.launch()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return _in_a_line(error)


def _wrong(
    device: torch.device, case: Case, found: Sequence[Tensor], capture: Capture | None
) -> str | None:
    try:
        with torch.no_grad(), _on(device):
            wrong = fault(found, case.right())
            if wrong is not None or capture is None:
                return wrong
            return _wrong_replay(device, capture, case, found)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return _in_a_line(error)


def _why_dead(device: torch.device) -> str | None:
    """Return why nothing runs on the device any more in this process; None where it does."""
    try:
        torch.ones(1, device=device).cpu()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return _in_a_line(error)
    return None


def _together(device: torch.device, makes: Sequence[Callable[[Draw], Case]]) -> list[_Launched]:
    with ThreadPoolExecutor(_THREADS) as pool:
        launched = list(pool.map(lambda make: _launched(device, make), makes))
    why = _why_dead(device)
    if why is not None:
        raise DeviceFaultError(
            f"a kernel ended all use of {device} in its self-check ({why}); "
            "HYPERMASK_FAST_BACKEND=reference does without kernels, and `hypermask doctor "
            "--kernels` tells which it is"
        )
    # What failed beside others has another chance alone.
    return [
        _launched(device, make) if isinstance(first, str) else first
        for first, make in zip(launched, makes, strict=True)
    ]


def check(
    device: torch.device, *, capture: Capture | None = captured, together: bool = True
) -> dict[str, str]:
    """Launch each kernel on small tensors, and judge its results and those of a captured graph.

    Args:
        device: "cuda" with its index, or what stands in for it.
        capture: Records a graph; None: there are none.
        together: Compile several at a time, where they are compiled. Else a kernel that ends the
            use of the device is known by its name, and those after it are not checked.

    Returns:
        What is wrong with each of :data:`KERNELS`, "" where nothing is.

    Raises:
        DeviceFaultError: A launch among others ended the use of the device for this process.
        torch.OutOfMemoryError: The device has no room for the cases.
    """
    makes = [(name, make) for name, cases in KERNELS.items() for make in cases]
    together = together and not INTERPRET.value
    ahead = _together(device, [make for _, make in makes]) if together else []
    found = dict.fromkeys(KERNELS, "")
    for number, (name, make) in enumerate(makes):
        if found[name]:
            continue
        launched = ahead[number] if ahead else _launched(device, make)
        wrong = launched if isinstance(launched, str) else _wrong(device, *launched, capture)
        found[name] = wrong or ""
        if wrong and _why_dead(device) is not None:
            later = [other for other, _ in makes[number:] if other != name]
            found |= dict.fromkeys(later, f"not checked, as {name} ended all use of the device")
            break
    return found
