"""A run's last task on the meta device: what it takes at each moment, found by the code it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hypermask_fast.head.types import HeadGrads, HeadStep
from hypermask_fast.methods.base import evaluating
from hypermask_fast.native.head import partition
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.planning.live_memory import LiveMemory
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig

DATA, TARGET, HEAD, TRUNK = (
    "data set",
    "target network",
    "hypernetwork: head",
    "hypernetwork: trunk and embeddings",
)
MOMENTS, BEST, LOADED = "Adam's moments", "best model so far", "checkpoint that is loaded"
RESUMING = "resuming"
MASKS, ACTIVATIONS, GRADIENTS = "masks and logits", "activations", "gradients"
TARGETS, PREVIOUS = "targets of earlier tasks", "weights of the last task"


@dataclass(frozen=True)
class ScenarioSize:
    """What a plan must know of a scenario.

    Attributes:
        tasks: Their number.
        classes: Outputs of the target network.
        input_shape: (C, H, W) of an input.
        validation, test: Examples of a task.
        data: Bytes of images, labels, indices and permutations on the device.
    """

    tasks: int
    classes: int
    input_shape: tuple[int, int, int]
    validation: int
    test: int
    data: int


@dataclass(frozen=True)
class Simulation:
    """What :func:`simulate` returns.

    Attributes:
        entries, width: N and H.
        head_parameters: Of the head, its bias included.
        peaks: For each moment the bytes of each part at its peak.
        learner: Bytes of its parameters and buffers.
        checkpoint: Bytes of a checkpoint within the last task.
    """

    entries: int
    width: int
    head_parameters: int
    peaks: dict[str, dict[str, int]]
    learner: int
    checkpoint: int


class _CompiledAdam(FactoredAdam):
    """Adam whose pass over the head allocates what the compiled one does."""

    def step_rows(self, step: HeadStep, *, finite: Tensor | None = None) -> HeadGrads:
        blocks = partition(len(step.head.weight))[1]
        sums = step.hidden.new_empty(blocks, *step.hidden.shape, dtype=torch.float64)
        return HeadGrads(sums[0].to(step.hidden.dtype), sums.new_zeros(()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Run:
    """A run, moment by moment, under a count of the memory it takes."""

    def __init__(self, config: RunConfig, size: ScenarioSize, memory: LiveMemory) -> None:
        self.config, self.size, self.memory = config, size, memory
        self.peaks: dict[str, dict[str, int]] = {}
        self.last = size.tasks - 1
        with memory.making(DATA):
            self.data = torch.empty(size.data, dtype=torch.uint8, device="meta")
        with memory.making(TARGET), torch.device("meta"):
            self.learner = make_learner(config, size.input_shape, size.classes)
        hypernetwork = self.learner.hypernetwork
        memory.assign(TRUNK, hypernetwork.parameters())
        memory.assign(HEAD, hypernetwork.head.parameters())
        self.learner.net.register_forward_pre_hook(lambda *_: self._now_make(ACTIVATIONS))
        self.learner.net.register_forward_hook(lambda *_: self._now_make(MASKS))
        for task in range(size.tasks):
            self.learner.add_task(str(task), range(size.classes))
        self._now_make(MASKS)

    def _now_make(self, part: str) -> None:
        self.memory.part = part

    def _inputs(self, count: int) -> Tensor:
        with self.memory.making(ACTIVATIONS):
            return torch.empty(count, *self.size.input_shape, device="meta")

    def _ended(self, moment: str) -> None:
        """Keep the peak since the last moment, where it is the highest of this name."""
        peak = self.memory.take_peak()
        if sum(peak.values()) > sum(self.peaks.get(moment, {}).values()):
            self.peaks[moment] = peak

    def _evaluate(self, count: int, weights: dict[str, Tensor] | None = None) -> None:
        count = min(count, self.config.eval_batch_size)
        with evaluating(self.learner), self.learner.activated(self.last, weights) as net:
            net(self._inputs(count)).argmax(1)

    def begin(self) -> None:
        """Start the last task, the others being learned."""
        with evaluating(self.learner):
            self.learner(self._inputs(2), self.last)
        self._evaluate(self.size.test)
        self._ended("evaluation")
        tensors, state = self.learner.task_state()
        state["learned"] = list(range(self.last))
        self.learner.load_task_state(tensors, state)
        self.learner.begin_task(self.last)
        for name, tensor in self.task_buffers():
            self.memory.assign(PREVIOUS if "previous" in name else TARGETS, [tensor])
        self._ended("start of a task")

    def task_buffers(self) -> list[tuple[str, Tensor]]:
        """Return what the learner keeps only within a task, with names."""
        lasting = self.learner.state_dict().keys()
        return [item for item in self.learner.named_buffers() if item[0] not in lasting]

    def make_optimizer(self) -> FactoredAdam:
        """Return Adam as it is after its first step."""
        small = self.config.moments == "bfloat16"
        hypernetwork = self.learner.updatable_hypernetwork()
        make = _CompiledAdam if self.memory.heap else FactoredAdam
        optimizer = make(
            [p for p in self.learner.parameters() if p.requires_grad],
            moments_dtype=torch.bfloat16 if small else None,
            step_in_backward=hypernetwork is not None,
        )
        factored = {id(p) for p in hypernetwork.head.parameters()} if hypernetwork else set()
        with self.memory.making(MOMENTS):
            for p in optimizer.param_groups[0]["params"]:
                dtype = torch.bfloat16 if small and id(p) in factored else p.dtype
                moments = {
                    name: torch.empty_like(p, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")
                }
                optimizer.state[p] = {"step": torch.tensor(1.0), **moments}
        return optimizer

    def step(self, optimizer: FactoredAdam) -> dict[str, Tensor] | None:
        """Take a step; return the weights before it where the published selection wants them."""
        x = self._inputs(self.config.batch_size)
        y = torch.zeros(self.config.batch_size, dtype=torch.int64, device="meta")
        losses = self.learner.losses(x, y, self.last, optimizer=optimizer)
        stale = None
        if self.config.selection == "best_published":
            stale = self.learner.masked_weights(self.last)
        with self.memory.making(GRADIENTS):
            losses.total.backward()
        # The rest of Adam's step takes less than what the backward pass has freed by now.
        self._ended("training step")
        return stale

    def validate(self, stale: dict[str, Tensor] | None) -> list[Tensor]:
        """Measure the validation accuracy; return the best model, if one is kept."""
        kept = self.learner.state_dict().values() if self.config.selection != "last" else ()
        with self.memory.making(BEST):
            best = [torch.empty_like(tensor) for tensor in kept]
        self._evaluate(self.size.validation, stale)
        with self.memory.making(BEST):
            # The one before is freed when the new one is whole.
            best = [torch.empty_like(tensor) for tensor in kept]
        self._ended("validation check")
        return best

    def end(self) -> None:
        """Finish the task; the trainer holds the moments until the evaluation is over."""
        self.learner.end_task()
        self.memory.take_peak()
        self._evaluate(self.size.test)
        self._ended("evaluation")


def simulate(config: RunConfig, size: ScenarioSize, *, on_cpu: bool) -> Simulation:
    """Run the moments of the last task on the meta device; no weight is made.

    Args:
        config: The settings.
        size: Of its scenario.
        on_cpu: Count as on a CPU, else as on CUDA.

    Raises:
        ConfigError: A setting does not fit.
    """
    with LiveMemory(heap=on_cpu) as memory:
        run = _Run(config, size, memory)
        run.begin()
        optimizer = run.make_optimizer()
        stale = run.step(optimizer)
        checkpoint = _bytes(run.learner.state_dict().values())
        checkpoint += _bytes(tensor for _, tensor in run.task_buffers())
        checkpoint += _bytes(m for state in optimizer.state.values() for m in state.values())
        if config.selection != "last" or config.schedule == "plateau":
            checkpoint += _bytes(run.validate(stale))
        del stale
        run.end()
    learner = {part: memory.live(part) for part in (DATA, TARGET, TRUNK, HEAD)}
    if on_cpu:
        # Pages of the mapped file are not counted: the system takes them back where it needs them.
        run.peaks[RESUMING] = {**learner, LOADED: checkpoint}
    head = run.learner.hypernetwork.head
    return Simulation(
        entries=run.learner.hypernetwork.num_outputs,
        width=head.in_features,
        head_parameters=sum(p.numel() for p in head.parameters()),
        peaks=run.peaks,
        learner=_bytes(run.learner.state_dict().values()),
        checkpoint=checkpoint,
    )
