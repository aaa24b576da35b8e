"""Parts of a training step through torch.compile, or as they are where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import ConfigError, TrainingError

MODES = (True, False, "auto")


class Compiler:
    """Whether a learner's modules are compiled, and why not.

    Args:
        mode: "auto" (default): on CUDA devices; where compilation fails the modules run as they
            are, with one warning. True: everywhere, and a failure raises. False: never.
        backend: Of torch.compile. Default "inductor".
        why_off: Why the mode is False. Default: it is off.

    Attributes:
        status: "yes", or "no" and why, for people.

    Raises:
        ConfigError: The mode is unknown.
    """

    def __init__(
        self,
        mode: bool | str = "auto",
        backend: str | Callable[..., Any] = "inductor",
        *,
        why_off: str = "it is off",
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"compile is {mode!r}; choose one of True, False, 'auto'")
        self.mode, self.backend = mode, backend
        self._failure = "" if mode else why_off
        self._why_not = self._failure

    @property
    def status(self) -> str:
        return f"no: {self._why_not}" if self._why_not else "yes"

    def enabled(self, device: torch.device) -> bool:
        """Return whether modules on a device are compiled; :attr:`status` tells it from then on."""
        on_cpu = self.mode == "auto" and device.type != "cuda"
        unused = f"'auto' compiles on cuda only, and the learner is on {device.type}"
        self._why_not = self._failure or (unused if on_cpu else "")
        return not self._why_not

    def failed(self, module: nn.Module, error: Exception) -> None:
        """Give up: warn, or raise TrainingError where the mode is True."""
        # Dynamo names the backend on the first line, its error on the second.
        lines = str(error).strip().splitlines()
        reason = " ".join([f"{type(error).__name__}:", *lines[:2]])
        if self.mode is True:
            raise TrainingError(
                f"compile is True and {type(module).__name__} could not be compiled ({reason}); "
                "use compile='auto' to go on without"
            ) from error
        self._why_not = self._failure = f"{type(module).__name__} could not be compiled ({reason})"
        warnings.warn(
            f"training steps run without torch.compile: {self._failure}; compile=False accepts it",
            RuntimeWarning,
            stacklevel=4,
        )


class CompiledModule:
    """Calls a module through torch.compile, in one graph; not a module itself.

    It is compiled at the first call. Copies compile anew.

    Args:
        module: The module.
        compiler: Says how, and is told of a failure, after which the module runs as it is.
        dynamic_rows: Compile once for any number of rows above 1.
    """

    def __init__(
        self, module: nn.Module, compiler: Compiler, *, dynamic_rows: bool = False
    ) -> None:
        self._module, self.compiler, self._dynamic_rows = module, compiler, dynamic_rows
        self._compiled: Callable[..., Any] | None = None
        self._has_run = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiler = self.compiler
        if compiler.status != "yes":
            return self._module(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(self._module, fullgraph=True, backend=compiler.backend)
        if self._dynamic_rows and len(args[0]) > 1:
            torch._dynamo.maybe_mark_dynamic(args[0], 0)
        try:
            if self._has_run:
                return self._compiled(*args, **kwargs)
            with stage("compiling with torch.compile"):
                out = self._compiled(*args, **kwargs)
            self._has_run = True
            return out
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # An error of the module itself comes again here.
            out = self._module(*args, **kwargs)
            compiler.failed(self._module, error)
            return out

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_compiled": None, "_has_run": False}


def trial() -> str:
    """Try torch.compile on this machine: return "yes", or "no" and why."""
    if not torch.cuda.is_available():
        return "no: torch sees no CUDA device; compile=True compiles on a CPU too"
    compiler = Compiler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        CompiledModule(nn.Linear(8, 8, device="cuda"), compiler)(torch.ones(8, 8, device="cuda"))
    return compiler.status
