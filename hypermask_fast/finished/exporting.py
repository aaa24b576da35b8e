"""One task of a run as a file of a plain network, and what that changes: size, time, accuracy."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.fields import check_value
from hypermask_fast.files.atomic import write_bytes_atomic
from hypermask_fast.finished.formats import FORMATS, bytes_of, check_format, outputs_of
from hypermask_fast.finished.inferred import loaded
from hypermask_fast.inference.export import export_subnet
from hypermask_fast.inference.sparse import prune_2_4
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.scenarios import Task

_ROUNDS, _SECONDS = 100, 2.0
_FOLDER = "exported"


@dataclass(frozen=True)
class Exported:
    """A file with the network of a task.

    Attributes:
        task: Its name.
        file: The file.
        form: Its format.
        bytes: Its size.
        learner_bytes: Of all parameters and buffers of the learner.
        learner_ms, plain_ms: Of these inputs, medians: of the learner with the task, and plain.
        rows: Inputs that were timed together: 1, or 2 where the network refuses one.
        difference: The largest of the file's outputs from the plain network's; None: it was not
            run, for lack of a runtime.
        pruned: Share of the weights that 2:4 set to 0; None without.
        accuracy, sparse_accuracy: Test accuracy in percent before and after 2:4; None without.
    """

    task: str
    file: str
    form: str
    bytes: int
    learner_bytes: int
    learner_ms: float
    plain_ms: float
    rows: int
    difference: float | None
    pruned: float | None
    accuracy: float | None
    sparse_accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def table(self) -> str:
        """Return it in lines."""
        ran = "not run: onnxruntime is not installed"
        if self.difference is not None:
            ran = f"run again: its outputs differ by at most {self.difference:.1e}"
        elif self.form == "safetensors":
            ran = "weights only"
        inputs = "one input" if self.rows == 1 else "two inputs"
        lines = [
            f"task      {self.task}",
            f"file      {self.file} ({ran})",
            f"size      {self.bytes:,} bytes; the learner of all tasks has {self.learner_bytes:,}",
            f"latency   {self.plain_ms:.3f} ms for {inputs}; the learner with the task takes "
            f"{self.learner_ms:.3f}",
        ]
        if self.pruned is not None:
            lines.append(
                f"2:4       accuracy {self.sparse_accuracy:.2f} % after, {self.accuracy:.2f} % "
                f"before; {100 * self.pruned:.1f} % of the weights became 0"
            )
        return "\n".join(lines)


def export(
    path: str | os.PathLike[str],
    task: str | int,
    form: str = "torch",
    *,
    out: str | os.PathLike[str] | None = None,
    sparse: str | None = None,
    force: bool = False,
    device: str | None = None,
    data_dir: str | None = None,
) -> Exported:
    """Write the plain network of a run's task, as the newest checkpoint has it, to a file.

    Args:
        path: The folder of the run.
        task: Its name, or its id.
        form: "torch", "onnx" or "safetensors"; see
            :func:`hypermask_fast.finished.formats.bytes_of`.
        out: The file. Default: ``exported/task-ID`` in the folder of the run.
        sparse: "2:4": set the smallest 2 of every 4 inputs' weights to 0. Default: none.
        force: Replace the file where it exists. Default False.
        device, data_dir: In place of those in the run's settings.

    Raises:
        ConfigError: An argument is wrong, the task was not learned, the file exists, or the format
            cannot hold the network.
        CheckpointError, DataError: As in :func:`hypermask_fast.runs.run.load`.
    """
    folder = Path(check_value("path", str, path, path=True))
    check_format(form)
    check_value("sparse", str, sparse, None, choices=("2:4",))
    check_value("force", bool, force)
    target = None if out is None else Path(check_value("out", str, out, path=True))
    trainer = loaded(folder, device=device, data_dir=data_dir)
    learner, rows = trainer.learner, trainer.settings.eval_batch_size
    task_id = _learned_task(learner, task)
    if target is None:
        more = "" if sparse is None else "-2of4"
        target = folder / _FOLDER / f"task-{task_id}{more}{FORMATS[form]}"
    if os.path.lexists(target) and not force:
        raise ConfigError(f"{target} exists; replace it with --force, or choose another --out")
    data = trainer.tasks[task_id]
    x = next(iter(data.evaluation_batches("test", 2)))[0]
    with evaluating(learner):
        x = x if len(x) > 1 else torch.cat((x, x))
        learner(x, task_id)
        plain = export_subnet(learner, task_id)
        before = after = share = None
        if sparse is not None:
            before = _accuracy(plain, data, rows)
            pruned = prune_2_4(plain)
            share = pruned.zeros / max(1, pruned.weights)
            after = _accuracy(plain, data, rows)
        written = bytes_of(plain, x, form, _texts(learner, task_id, plain, x))
        given = outputs_of(written, form, x)
        difference = None if given is None else float((given - plain(x).cpu()).abs().max())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder of {target}: {error.strerror}; choose another --out"
        ) from error
    write_bytes_atomic(target, written)
    with evaluating(learner):
        timed = _timed_inputs(plain, x)
        calls = [lambda: learner(timed, task_id), lambda: plain(timed)]
        learner_ms, plain_ms = _latencies(calls, x.device)
    return Exported(
        task=learner.tasks[task_id].name,
        file=str(target),
        form=form,
        bytes=len(written),
        learner_bytes=sum(value.nbytes for value in learner.state_dict().values()),
        learner_ms=learner_ms,
        plain_ms=plain_ms,
        rows=len(timed),
        difference=difference,
        pruned=share,
        accuracy=before,
        sparse_accuracy=after,
    )


def _timed_inputs(plain: nn.Module, x: Tensor) -> Tensor:
    """Return one input, or two where a network refuses one, as statistics of a batch do."""
    try:
        plain(x[:1])
    except ValueError:
        return x[:2]
    return x[:1]


def _learned_task(learner: Learner, task: str | int) -> int:
    """Return the id of a learned task from its name, or from its id, which may be text."""
    names = {learner.tasks[i].name: i for i in learner.learned}
    if isinstance(task, str) and task in names:
        return names[task]
    text = str(task)
    if not isinstance(task, bool) and text.isdecimal() and int(text) in learner.learned:
        return int(text)
    known = ", ".join(f"{i} ({name!r})" for name, i in names.items())
    raise ConfigError(
        f"task={shown(task)} was not learned{nearest(task, names)}; choose one of {known}"
    )


def _texts(learner: Learner, task: int, net: nn.Module, x: Tensor) -> dict[str, str]:
    """Return what a file of weights says of the task and of the network they are for."""
    record = learner.tasks[task]
    return {
        "task": record.name,
        "classes": json.dumps(record.classes),
        "network": type(net).__name__,
        "input_shape": json.dumps(list(x.shape[1:])),
    }


def _accuracy(net: nn.Module, task: Task, rows: int) -> float:
    """Return the test accuracy of a plain network in percent."""
    correct = sum(
        int((net(x)[:, : task.num_classes].argmax(1) == y).sum())
        for x, y in task.evaluation_batches("test", rows)
    )
    return 100.0 * correct / len(task.test)


def _latencies(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median times of calls in milliseconds, taken in turn."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + _SECONDS
    for _ in range(_ROUNDS):
        for found, call in zip(times, calls, strict=True):
            wait()
            begin = time.perf_counter()
            call()
            wait()
            found.append(1e3 * (time.perf_counter() - begin))
        if time.perf_counter() > end:
            break
    return [statistics.median(found) for found in times]
