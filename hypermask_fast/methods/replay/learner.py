"""What methods with replay share: the life of the replay's parts beside those of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.methods.batches import check_optimizers
from hypermask_fast.methods.counting import CountsSteps
from hypermask_fast.methods.inputs import Given, Inputs
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.methods.replay.replay import Replay
from hypermask_fast.methods.replay.settings import ReplaySettings
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.modes import has_values
from hypermask_fast.scenarios import Preprocess, Task
from hypermask_fast.scenarios.transform import Cast

_PREFIX = "replay."


class ReplayLearner(CountsSteps):
    """A learner with a :class:`Replay` of earlier tasks' images, which a subclass makes.

    Attributes:
        replay: What draws them.
        replay_weight: Their share in a loss.
    """

    takes_input_shape: ClassVar[bool] = True

    replay: Replay
    replay_weight: float

    def _make_replay(
        self, input_shape: Sequence[int], settings: ReplaySettings, like: Tensor
    ) -> None:
        self.replay_weight = settings.replay_weight
        self.replay = Replay(input_shape, settings, like)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return self.replay.input_shape

    def follows_exchange(self) -> Iterable[Tensor]:
        yield from super().follows_exchange()
        yield from self.replay.hypernetwork.parameters()

    def add_task(self, name: str | None = None, classes: Sequence[int] | None = None) -> int:
        count, conditions = len(self.tasks) + 1, self.replay.decoder.conditions
        if 0 < conditions < count:
            raise ValueError(
                f"this is task number {count} and conditions={conditions}; build the learner with "
                "conditions for all tasks, or conditions=0"
            )
        return super().add_task(name, classes)

    def _copy_rows(self, source: int, task: int) -> None:
        super()._copy_rows(source, task)
        self.replay.hypernetwork.copy_row(source, task)

    def _renew_rows(self, task: int) -> None:
        super()._renew_rows(task)
        self.replay.hypernetwork.renew_row(task)

    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
        self.replay.hypernetwork.grow(capacity)

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task; see :meth:`Learner.begin_task`.

        Raises:
            ConfigError: Its images are normalized, so that they are not in [0, 1].
        """
        task = self._checked_beginning(task, steps)
        prepared = data.train_preprocess if isinstance(data, Task) else None
        prepared = prepared.before if isinstance(prepared, Cast) else prepared
        if isinstance(prepared, Preprocess) and prepared.mean is not None:
            raise ConfigError(
                f"the images of the task are normalized by {prepared} and "
                "those that are replayed are in [0, 1]; make the scenario with normalize=False"
            )
        self.replay.record(task, self._earlier(task))
        super().begin_task(task, steps=steps, data=data)

    def _whole(self, x: Tensor) -> int:
        """Return the rows of a step's batch in all processes, for which images are replayed."""
        return len(x) if self.share is None else self.share.whole

    def _leave(self) -> None:
        super()._leave()
        self.replay.clear()

    def losses(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        *,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> Losses:
        """Refuse: the parts that learn are stepped one after the other; call :meth:`step`.

        Raises:
            RuntimeError: In any case that is right otherwise.
        """
        self._checked_batch(x, y, task, criterion)
        self._refuse("losses", task)

    def regularization(self, task: TaskId) -> Tensor:
        """Refuse, as :meth:`losses` does.

        Raises:
            RuntimeError: In any case that is right otherwise.
        """
        self._checked_current(task)
        self._refuse("the regularization", task)

    def _refuse(self, what: str, task: TaskId) -> NoReturn:
        verb = "were" if what == "losses" else "was"
        raise RuntimeError(
            f"{what} of task {task} {verb} asked for and {type(self).__name__} steps its parts one "
            "after the other; call step(x, y, task, optimizers)"
        )

    def _checked_batch(
        self, x: Given, y: Any, task: TaskId, criterion: Criterion | None = None
    ) -> tuple[Any, int]:
        x, task = super()._checked_batch(x, y, task, criterion)
        wanted = (len(x), *self.replay.input_shape)
        if isinstance(x, Inputs):
            raise ValueError(
                f"a batch of {x} is given and what is replayed is one image {wanted}; give one "
                "tensor, of the input_shape that the learner was built with"
            )
        if x.shape != wanted or not x.is_floating_point():
            raise ValueError(
                f"inputs are {x.dtype} of shape {tuple(x.shape)}; give images {wanted} in [0, 1], "
                "of the input_shape that the learner was built with"
            )
        if has_values(x):
            low, high = (float(value) for value in x.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"inputs reach from {low:g} to {high:g} and those that are replayed are in "
                    "[0, 1]; give images in [0, 1], from a scenario with normalize=False"
                )
        return x, task

    def _check_names(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Raise ConfigError where the optimizers are not those of the parameter groups."""
        check_optimizers(optimizers)
        names = {group.optimizer for group in self.parameter_groups(self.phase)}
        if optimizers.keys() != names:
            raise ConfigError(
                f"optimizers are {sorted(optimizers)}; give {sorted(names)}, over what "
                "parameter_groups() has under these names"
            )

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return those of the method, and those of the replay."""
        own = {id(p) for p in self.replay.parameters()}
        return [
            *(
                group._replace(params=[p for p in group.params if id(p) not in own])
                for group in super().parameter_groups(phase)
            ),
            *self.replay.parameter_groups(),
        ]

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        return {
            **super().memory_parts(),
            "replay: encoder and hypernetwork": list(self.replay.parameters()),
            "replay: decoders of earlier tasks": self.replay.kept.held_tensors(),
        }

    def facts(self) -> dict[str, int]:
        parameters = sum(p.numel() for p in self.replay.parameters())
        return {
            **super().facts(),
            "decoder_weights": self.replay.decoder.size,
            "replay_parameters": parameters - self.replay.hypernetwork.embeddings.numel(),
        }

    def fixed_in_graph(self) -> tuple[object, ...]:
        return *super().fixed_in_graph(), self.replay.beta, self.replay_weight

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        of_replay, json = self.replay.state()
        tensors |= {_PREFIX + name: value for name, value in of_replay.items()}
        return tensors, {**state, "replay": json}

    def _without_tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        state, of_replay = super()._without_tensors(state), state["replay"]
        # Nothing is kept in the first task but its id.
        ids = of_replay["ids"] if len(of_replay["ids"] or ()) < 2 else None
        return {**state, "replay": {**of_replay, "ids": ids}}

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        own = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
        self.replay.load(own, state["replay"])


def checked_shape(input_shape: object) -> tuple[int, ...]:
    """Return the shape of an input; raise ConfigError where it is none."""
    shape: tuple[int, ...] = check_value("input_shape", tuple, input_shape, low=1)
    if not shape:
        raise ConfigError(f"input_shape is {shown(input_shape)}; give (C, H, W) of an image")
    return shape
