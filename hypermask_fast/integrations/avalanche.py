"""Any method of this package as a strategy of Avalanche, for its streams, metrics and loggers.

Needs avalanche-lib; written for 0.6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.protocol import Losses, Phase
from hypermask_fast.scenarios import BatchStream, Task, make_task
from hypermask_fast.scenarios.avalanche_tasks import Items
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.phases import phases_of
from hypermask_fast.training.schedules import Schedule
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.vision import import_torchvision

import_torchvision()  # first: Avalanche's own import of it fails beside a CPU build of torch
try:
    from avalanche.training.plugins.evaluation import default_evaluator
    from avalanche.training.templates import SupervisedTemplate
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"hypermask_fast.integrations.avalanche needs Avalanche ({error}); install it with pip "
        "install avalanche-lib==0.6.0"
    ) from error

_WITHIN_A_STEP = ("after_forward", "before_backward", "after_backward", "before_update")


class LearnerStrategy(SupervisedTemplate):
    """Trains a learner on the experiences of a stream; each task label is a task of the learner.

    A training experience begins the task of its label, which gets new optimizers in each phase, and
    ends it. An experience of a label that is not known yet, as in a test stream that has all tasks,
    adds its task. The losses are the learner's; in a test, the criterion's. What Avalanche sees as
    the model's output has a place for every label, and minus infinity for those of other tasks.

    Args:
        learner: The learner, of any method.
        train_mb_size: Examples in a training step. Default 128.
        train_epochs: Passes over the examples of an experience. Default 1.
        eval_mb_size: Examples in a test batch. Default 2000.
        seed: Draw the training batches as :class:`~hypermask_fast.Trainer` does with this seed, so
            that its numbers are the same; what plugins change in the data is then not seen.
            Default None: Avalanche's loader.
        plugins, evaluator, eval_every, peval_mode, criterion: As in Avalanche. Plugins that look
            into a step (``before_backward`` and so on) are refused, for a step is one call of the
            learner's.
        optimizer, lr, momentum, weight_decay, adam_beta1, moments, schedule, warmup_steps: As for
            :class:`~hypermask_fast.Trainer`; a schedule that looks at validation data is refused.

    Attributes:
        optimizers: Those of the present phase, by name.
        losses: Of the last training step.

    Raises:
        TypeError: The learner is none.
        ConfigError: A setting is wrong or not for a strategy, or a plugin looks into a step.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        train_mb_size: int = 128,
        train_epochs: int = 1,
        eval_mb_size: int = 2000,
        seed: int | None = None,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        criterion: Any = None,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        optimizer: str = "adam",
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        adam_beta1: float = 0.9,
        moments: str = "float32",
        schedule: str = "constant",
        warmup_steps: int = 0,
    ) -> None:
        check_learner(learner)
        self._settings = TrainingSettings(
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            adam_beta1=adam_beta1,
            moments=moments,
            schedule=schedule,
            warmup_steps=warmup_steps,
        )
        if self._settings.watches:
            raise ConfigError(
                f"schedule={schedule!r} looks at validation data, which a strategy has none of; "
                "use another, or Trainer with scenarios.from_avalanche(benchmark, validation=0.1)"
            )
        self._seed = check_value("seed", int, seed, None, low=0, high=2**64 - 1)
        for plugin in plugins or ():
            _check_plugin(plugin)
        super().__init__(
            model=learner,
            optimizer=None,
            criterion=torch.nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=check_value("train_mb_size", int, train_mb_size, low=1),
            train_epochs=check_value("train_epochs", int, train_epochs, low=1),
            eval_mb_size=check_value("eval_mb_size", int, eval_mb_size, low=1),
            device=next(learner.parameters()).device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self.optimizers: Mapping[str, Optimizer] = {}
        self.losses: Losses | None = None
        self._classes: dict[int, Tensor] = {}
        self._phases: list[tuple[Phase, int]] = []
        self._schedule: Schedule | None = None
        self._step = self._per_epoch = 0

    @property
    def learner(self) -> Learner:
        """The learner."""
        learner: Learner = self.model
        return learner

    def task_of(self, experience: Any) -> int:
        """Return the learner's task of an experience, which is added where it is new.

        Args:
            experience: Of a stream with task labels.

        Raises:
            ConfigError: It has no task label, or other classes than its task.
        """
        label = getattr(experience, "task_label", None)
        if label is None:
            raise ConfigError(
                f"experience {shown(experience)} has no task label; make the benchmark with "
                "return_task_id=True or task_labels=True"
            )
        classes = tuple(sorted({int(label) for label in experience.dataset.targets}))
        name = f"task {label}"
        known = {record.name: task for task, record in enumerate(self.learner.tasks)}
        if name not in known:
            known[name] = self.learner.add_task(name, classes)
        task = known[name]
        of_task = self.learner.tasks[task].classes
        if of_task is None or not set(classes) <= set(of_task):
            raise ConfigError(
                f"an experience of task label {label} has the classes {classes} and its task has "
                f"{of_task}; make a benchmark in which each experience has a label of its own, "
                "with return_task_id=True or task_labels=True"
            )
        self._classes[task] = torch.tensor(of_task, device=self.device)
        return task

    # From here on what Avalanche calls.

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make none: each phase of a task has its own."""

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Begin the task of the experience."""
        experience = self.experience
        assert experience is not None
        task = self.task_of(experience)
        data = _task_of(self.learner, task, experience)
        per_epoch = self._make_batches(task, data)
        total = per_epoch * self.train_epochs
        if self._settings.warmup_steps > total:
            raise ConfigError(
                f"warmup_steps={self._settings.warmup_steps} is more than the {total} steps of an "
                "experience; give at most as many"
            )
        learner = self.learner
        with evaluating(learner):
            learner(data.stream(2, 0, task).batch(0)[0], task)
        learner.begin_task(task, steps=total, data=data)
        try:
            self._phases = phases_of(learner, task, total)
            self._begin_phase(per_epoch)
        except BaseException:
            learner.abandon_task(restore=False)
            raise
        self._per_epoch = per_epoch
        self._step = 0

    def _make_batches(self, task: int, data: Task) -> int:
        """Take the loader, Avalanche's or the trainer's, and return the batches of an epoch."""
        if self._seed is not None:
            stream = data.stream(self.train_mb_size, self._seed, task)
            self.dataloader = _Batches(stream, data.classes, self.experience.task_label)
        return len(self.dataloader)

    def _begin_phase(self, per_epoch: int) -> None:
        learner = self.learner
        self.optimizers, self._schedule = {}, None  # frees the moments of the phase before
        self.optimizers = make_optimizers(learner, self._settings)
        self.optimizer = next(iter(self.optimizers.values()), None)
        steps = {phase.name: phase.steps for phase, _ in self._phases}
        self._schedule = Schedule(
            self._settings.schedule,
            self.optimizers.values(),
            steps=steps[learner.phase],
            warmup_steps=self._settings.warmup_steps,
            epoch_steps=per_epoch,
        )

    def training_epoch(self, **kwargs: Any) -> None:
        """Take a step for each batch of the loader."""
        for batch in self.dataloader:
            if self._stop_training:
                break
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            self._take_step()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)

    def _take_step(self) -> None:
        learner, task = self.learner, self.learner.current
        assert task is not None
        # Early stopping or a loader of another length may leave fewer or more steps than planned.
        begins = [begin for _, begin in self._phases if begin <= self._step]
        phase, begin = self._phases[len(begins) - 1]
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
            self._begin_phase(self._per_epoch)
        assert self._schedule is not None
        self._schedule.before_step(self._step - begin)
        local = torch.searchsorted(self._classes[task], self.mb_y)
        self.losses = learner.step(self.mb_x, local, task, self.optimizers).detached()
        self.mb_output = self._spread(self.losses.logits, task)
        self.loss = self.losses.total
        self._step += 1

    def forward(self) -> Tensor:
        """Return the outputs of the batch, (batch, labels), each row's by its task."""
        labels = self.mb_task_id.unique().tolist()
        known = {label: self.learner.task_id(f"task {label}") for label in labels}
        parts = {label: (self.mb_task_id == label).nonzero().flatten() for label in labels}
        outputs = [
            self._spread(self.model(self.mb_x[rows], known[label]), known[label])
            for label, rows in parts.items()
        ]
        return torch.cat(outputs)[torch.cat(list(parts.values())).argsort()]

    def _spread(self, logits: Tensor, task: int) -> Tensor:
        """Return logits by the benchmark's labels."""
        classes = self._classes[task]
        width = 1 + max(int(some.max()) for some in self._classes.values())
        spread = logits.new_full((len(logits), width), -math.inf)
        spread[:, classes] = logits[:, : len(classes)]
        return spread

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self.task_of(self.experience)
        super()._before_eval_exp(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        task = self.learner.current
        assert task is not None
        self.learner.end_task(data=_task_of(self.learner, task, self.experience))
        self.optimizers, self.optimizer, self._schedule = {}, None, None
        super()._after_training_exp(**kwargs)


class _Batches:
    """The batches of a stream, an epoch of them each time it is iterated over."""

    def __init__(self, stream: BatchStream, classes: Sequence[int], label: int) -> None:
        self._stream, self._label, self._next = stream, label, 0
        self._classes = torch.tensor(classes)

    def __len__(self) -> int:
        return self._stream.steps_per_epoch

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(len(self)):
            step = self._next
            self._next += 1
            x, y = self._stream.batch(step)
            yield [x, self._classes.to(y.device)[y], torch.full_like(y, self._label)]


def _task_of(learner: Learner, task: int, experience: Any) -> Task:
    """Return an experience as methods look at it, on the learner's device."""
    items = Items(experience, training=True)
    made = make_task(learner.tasks[task].name or "", items, items)
    return made.to(next(learner.parameters()).device)


def _check_plugin(plugin: Any) -> None:
    """Raise ConfigError where a plugin acts inside of what is one call here."""
    bases: Iterable[type] = type(plugin).__mro__
    own = {
        name
        for cls in bases
        if not cls.__module__.startswith("avalanche.core")
        for name in vars(cls)
    }
    if found := sorted(own & set(_WITHIN_A_STEP)):
        raise ConfigError(
            f"plugin {shown(plugin)} has {', '.join(found)}, and a learner's step is one call; "
            "leave it out, or give the learner to a loop of your own"
        )
