"""A run's last task on the meta device: what it takes at each moment, found by the code it runs."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.head.shard import Place
from hypermask_fast.head.types import HeadGrads, HeadStep
from hypermask_fast.hypernetworks.sharded import sharing_among
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.extra_state import moving_of, weights_of
from hypermask_fast.methods.sharded import shard_of
from hypermask_fast.native.head import partition
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.planning.live_memory import LiveMemory
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.divided import divided_dims
from hypermask_fast.training.optimizers import make_optimizers, optimizer_state

DATA, TARGET = "data set", "target network"
MOMENTS, BEST, LOADED = "Adam's moments", "best model so far", "checkpoint that is loaded"
RESUMING = "resuming"
_KEPT = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": (), "rmsprop": ("square_avg",)}
MASKS, ACTIVATIONS, GRADIENTS = "masks and logits", "activations", "gradients"


@dataclass(frozen=True)
class ScenarioSize:
    """What a plan must know of a scenario.

    Attributes:
        tasks: Their number.
        classes: Outputs of the target network.
        input_shape: Of an input; (C, H, W) of images.
        validation, test: Examples of a task.
        data: Bytes of images, labels, indices and permutations on the device.
        dtype: Of inputs. Default: float32.
    """

    tasks: int
    classes: int
    input_shape: tuple[int, ...]
    validation: int
    test: int
    data: int
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Simulation:
    """What :func:`simulate` returns.

    Attributes:
        facts: Of the learner.
        peaks: For each moment the bytes of each part at its peak.
        learner: Bytes of its parameters and buffers.
        checkpoint: Bytes of a checkpoint within the last task, of all processes.
    """

    facts: Mapping[str, int]
    peaks: dict[str, dict[str, int]]
    learner: int
    checkpoint: int


class _Adam(FactoredAdam):
    """Adam that steps nothing: after a backward pass it takes less than that has freed by then."""

    def step(self, closure: Any = None) -> Any:
        self.forget_update()


class _CompiledAdam(_Adam):
    """Whose pass over the head allocates what the compiled one does."""

    def step_rows(self, step: HeadStep, *, finite: Tensor | None = None) -> HeadGrads:
        blocks = partition(len(step.head.weight))[1]
        sums = step.hidden.new_empty(blocks, *step.hidden.shape, dtype=torch.float64)
        return HeadGrads(sums[0].to(step.hidden.dtype), sums.new_zeros(()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Run:
    """A run, moment by moment, under a count of the memory it takes."""

    def __init__(
        self, config: RunConfig, size: ScenarioSize, memory: LiveMemory, processes: int
    ) -> None:
        self.config, self.size, self.memory = config, size, memory
        self.batch_size = -(-config.training.batch_size // processes)
        self.peaks: dict[str, dict[str, int]] = {}
        self.last = size.tasks - 1
        with memory.making(DATA):
            self.data = torch.empty(size.data, dtype=torch.uint8, device="meta")
        divides = config.run.shard_head and processes > 1
        divided = sharing_among(Place(0, processes)) if divides else nullcontext()
        with memory.making(TARGET), torch.device("meta"), divided:
            self.learner = make_learner(config, size.input_shape, size.classes)
        self._assign()
        self.learner.net.register_forward_pre_hook(lambda *_: self._now_make(ACTIVATIONS))
        self.learner.net.register_forward_hook(lambda *_: self._now_make(MASKS))
        for task in range(size.tasks):
            self.learner.add_task(str(task), range(size.classes))
        self._now_make(MASKS)

    def _now_make(self, part: str) -> None:
        self.memory.part = part

    def _assign(self) -> None:
        """Count the learner's tensors as the parts that it names."""
        for part, tensors in self.learner.memory_parts().items():
            self.memory.assign(part, tensors)

    def _inputs(self, count: int) -> Tensor:
        with self.memory.making(ACTIVATIONS):
            shape = self.size.input_shape
            return torch.empty(count, *shape, dtype=self.size.dtype, device="meta")

    def _ended(self, moment: str) -> None:
        """Keep the peak since the last moment, where it is the highest of this name."""
        peak = self.memory.take_peak()
        if sum(peak.values()) > sum(self.peaks.get(moment, {}).values()):
            self.peaks[moment] = peak

    def _evaluate(self, count: int, weights: dict[str, Tensor] | None = None) -> None:
        count = min(count, self.config.training.eval_batch_size)
        with evaluating(self.learner), self.learner.activated(self.last, weights) as net:
            net(self._inputs(count)).argmax(1)

    def begin(self) -> None:
        """Start the last task, the others being learned."""
        gc.collect()  # what building left in cycles would be counted, or not, by chance
        with evaluating(self.learner):
            self.learner(self._inputs(2), self.last)
        self._evaluate(self.size.test)
        self._ended("start of a task")
        tensors, state = self.learner.task_state()
        state |= self.learner.learned_state(range(self.last))
        self.learner.load_task_state(tensors, state)
        self._assign()
        self.learner.begin_task(self.last, steps=self.steps)
        self._assign()
        self._ended("start of a task")

    @property
    def steps(self) -> int:
        """Of a task; how many there are makes no difference to the memory."""
        return self.config.training.steps or 1000

    def state_bytes(self) -> int:
        """Return what a checkpoint within the task takes of the learner."""
        within, _ = self.learner.task_state()
        return _bytes(weights_of(self.learner).values()) + _bytes(within.values())

    def bytes_elsewhere(self, optimizers: Mapping[str, Optimizer]) -> int:
        """Return what other processes add to a checkpoint: what they have for their rows."""
        shard = shard_of(self.learner)
        if shard is None:
            return 0
        named = {f"learner/{name}": value for name, value in weights_of(self.learner).items()}
        if self.config.training.selection != "last":
            named |= {f"best/{name.partition('/')[2]}": value for name, value in named.items()}
        named |= {f"task/{name}": value for name, value in self.learner.task_state()[0].items()}
        named |= optimizer_state(optimizers)[0]
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        divided = divided_dims(self.learner, optimizers, shapes, shard.rows)
        return _bytes(named[name] for name in divided) * (shard.size - shard.rows) // shard.rows

    def make_optimizers(self) -> dict[str, Optimizer]:
        """Return the present phase's optimizers as they are after their first step."""
        adam = _CompiledAdam if self.memory.heap else _Adam
        made = make_optimizers(self.learner, self.config.training, adam=adam)
        groups = self.learner.parameter_groups(self.learner.phase)
        factored = {id(p) for group in groups for p in group.in_backward}
        with self.memory.making(MOMENTS):
            for optimizer in made.values():
                for p in (p for group in optimizer.param_groups for p in group["params"]):
                    optimizer.state[p] |= self._state(p, id(p) in factored)
        return made

    def _state(self, p: Tensor, is_factored: bool) -> dict[str, Tensor]:
        """Return what an optimizer keeps of a parameter."""
        settings = self.config.training
        dtype = torch.bfloat16 if is_factored and settings.moments == "bfloat16" else p.dtype
        kept = {name: torch.empty_like(p, dtype=dtype) for name in _KEPT[settings.optimizer]}
        if settings.momentum:
            kept["momentum_buffer"] = torch.empty_like(p)
        return kept if settings.optimizer == "sgd" else {"step": torch.tensor(1.0), **kept}

    def step(self, optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor] | None:
        """Take a step; return the weights before it where the published selection wants them."""
        x = self._inputs(self.batch_size)
        y = torch.zeros(self.batch_size, dtype=torch.int64, device="meta")
        stale: dict[str, Tensor] = {}

        def after_forward() -> None:
            if self._measures and self.config.training.selection == "best_published":
                stale.update(self.learner.task_weights(self.last))
            self._now_make(GRADIENTS)

        self.learner.step(x, y, self.last, optimizers, after_forward)
        self._now_make(MASKS)
        self._ended("training step")
        return stale or None

    @property
    def _measures(self) -> bool:
        published = self.config.training.selection == "best_published"
        watches = self.config.training.watches
        return not published or watches or self.learner.scores_by_accuracy

    def validate(self, stale: dict[str, Tensor] | None) -> list[Tensor]:
        """Measure the validation accuracy; return the best model, if one is kept."""
        kept = moving_of(self.learner).values() if self.config.training.selection != "last" else ()
        with self.memory.making(BEST):
            best = [torch.empty_like(tensor) for tensor in kept]
        if self._measures:
            is_of_test = self.config.training.measured == "test"
            self._evaluate(self.size.test if is_of_test else self.size.validation, stale)
        self._ended("validation check")
        return best

    def end(self) -> None:
        """Finish the task; the trainer holds the moments until the evaluation is over."""
        self.learner.end_task()
        self._assign()
        self.memory.take_peak()
        self._evaluate(self.size.test)
        self._ended("evaluation")


def simulate(
    config: RunConfig, size: ScenarioSize, *, on_cpu: bool, processes: int = 1
) -> Simulation:
    """Run the moments of the last task on the meta device; no weight is made.

    Args:
        config: The settings.
        size: Of its scenario.
        on_cpu: Count as on a CPU, else as on CUDA.
        processes: Those that train together, of which it is the first one. Default 1.

    Raises:
        ConfigError: A setting does not fit.
    """
    with LiveMemory(heap=on_cpu) as memory:
        run = _Run(config, size, memory, processes)
        run.begin()
        checkpoint, elsewhere, stale = 0, 0, None
        phases = run.learner.phases(run.last, run.steps)
        for phase in phases:
            if run.learner.phase != phase.name:
                run.learner.begin_phase(phase.name)
            optimizers = run.make_optimizers()
            stale = run.step(optimizers)
            states = [state for each in optimizers.values() for state in each.state.values()]
            moments = sum(_bytes(state.values()) for state in states)
            checkpoint = max(checkpoint, run.state_bytes() + moments)
            elsewhere = max(elsewhere, run.bytes_elsewhere(optimizers))
            if phase is not phases[-1]:
                del optimizers, states
        if config.training.validates or config.training.measured == "test":
            checkpoint += _bytes(run.validate(stale))
        del stale
        size_of_learner = _bytes(weights_of(run.learner).values())
        run.end()
    learner = {part: memory.live(part) for part in (DATA, TARGET, *run.learner.memory_parts())}
    if on_cpu:
        # Pages of the mapped file are not counted: the system takes them back where it needs them.
        run.peaks[RESUMING] = {**learner, LOADED: checkpoint}
    return Simulation(
        facts=run.learner.facts(),
        peaks=run.peaks,
        learner=size_of_learner,
        checkpoint=checkpoint + elsewhere,
    )
