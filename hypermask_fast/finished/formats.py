"""Plain networks as bytes of files that others read: torch.export, ONNX, safetensors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.files.tensor_file import check_kinds, safetensors_blocks

FORMATS = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
"""The formats by name, and the end of a file's name."""


def check_format(name: object) -> str:
    """Return the name of a format; ConfigError where there is none of it, or it cannot be made."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(
            f"format={shown(name)} is unknown{nearest(name, FORMATS)}; choose one of "
            f"{', '.join(FORMATS)}"
        )
    if name == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"format='onnx' needs other packages ({error}); pip install onnx onnxscript"
            ) from error
    return name


@contextmanager
def _as_refusal(net: nn.Module, form: str) -> Iterator[None]:
    """Turn what an exporter raises into a ConfigError, and silence what it says of itself."""
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    except Exception as error:  # Tracing runs the network's own code, and raises anything.
        reason = next(iter(str(error).strip().splitlines()), "") or "without a word"
        raise ConfigError(
            f"format={form!r} cannot hold this {type(net).__name__} ({type(error).__name__}: "
            f"{reason}); use format='safetensors'"
        ) from error


def program_of(net: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """Return a network as an exported program, for any number of rows where the network takes it.

    Args:
        net: A plain network in evaluation mode.
        x: Its inputs, of at least 2 rows.
    """
    with _as_refusal(net, "torch"), torch.no_grad():
        return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def bytes_of(net: nn.Module, x: Tensor, form: str, texts: Mapping[str, str] | None = None) -> bytes:
    """Return a plain network in evaluation mode as the bytes of a file.

    Args:
        net: The network, such as one of :func:`hypermask_fast.export_subnet`.
        x: Inputs (batch, ...) with at least 2 rows, for "torch" and "onnx", which trace it.
        form: "torch": a program for torch.export.load, which needs no class of the network; "onnx":
            a model for any runtime; "safetensors": the state_dict.
        texts: For "safetensors": what the header says beside names and shapes.

    Raises:
        ConfigError: The format is unknown, needs a package that is not installed, or cannot hold
            the network.
    """
    check_format(form)
    if form == "safetensors":
        state = net.state_dict()
        check_kinds(state)
        return b"".join(safetensors_blocks(state, texts))
    program = program_of(net, x)
    if form == "onnx":
        with _as_refusal(net, form):
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
            proto: bytes = made.model_proto.SerializeToString()
        return proto
    buffer = io.BytesIO()
    with _as_refusal(net, form):
        torch.export.save(program, buffer)
    return buffer.getvalue()


def outputs_of(data: bytes, form: str, x: Tensor) -> Tensor | None:
    """Return what a file's network puts out, on the CPU, or None where nothing here runs it.

    Args:
        data: The bytes of the file.
        form: Its format.
        x: Inputs, on the device that it was made on.
    """
    if form == "torch":
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            outputs: Tensor = torch.export.load(io.BytesIO(data)).module()(x)
        return outputs.cpu()
    if form == "onnx":
        try:
            import onnxruntime
        except ImportError:
            return None
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        return torch.from_numpy(session.run(None, {given.name: x.cpu().numpy()})[0])
    return None
