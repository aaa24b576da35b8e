"""What methods share that run a network with other weights in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hypermask_fast.backends.compiled import CompiledModule, Compiler
from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.conversion.norm_tables import TaskNorms
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.batches import check_weights, run
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.inputs import Batch
from hypermask_fast.methods.tasks import TaskId


class ConvertedLearner(Learner):
    """A learner over a converted network, with normalisation for each task.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it. A subclass makes
    :attr:`norms`.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen.
        source: What the layers' repr shows as the source of their weights.
        bn: Mode of the normalisation layers; see :class:`TaskNorms`.
        norms_too: Parameters of normalisation layers are replaced as weights are. Default False.
        shared: The same for what stays plain and is trained for all tasks. Default: nothing.
        per_task: The same for what each task has a copy of. Default: nothing.
        shares: What cannot be masked is shared, with a warning, and not refused. Default False.

    Raises:
        ConfigError: The network has a part that cannot be converted; it is left as it was.
    """

    norms: TaskNorms
    _compiled_net: CompiledModule | None = None

    def __init__(
        self,
        net: nn.Module,
        *,
        capacity: int,
        exclude: Patterns,
        source: str,
        bn: str,
        norms_too: bool = False,
        shared: Patterns = (),
        per_task: Patterns = (),
        shares: bool = False,
    ) -> None:
        super().__init__(net, capacity)
        self.bn = bn
        self._network = ConvertedNetwork(
            net,
            exclude,
            source,
            shared=shared,
            per_task=per_task,
            generated=norms_too,
            shares=shares,
        )

    def _check_mixing(self) -> None:
        if self.norms.mixes_rows:
            raise ValueError(
                f"rows of several tasks in a batch, in training mode with bn={self.bn!r}: each "
                "task's few rows would be their own batch statistics; give one task at a time, or "
                "call eval() first"
            )

    def _prepare(self, x: Batch) -> None:
        self.check_network()

    def check_network(self) -> None:
        if self.net is not self._network.net:
            raise RuntimeError(
                f"learner.net is another {type(self.net).__name__} than the one that was converted "
                "when the learner was built; build a new learner for another network"
            )

    def _dry_run(self, x: Batch, see: Callable[[Callable[[], object]], object]) -> None:
        """Let ``see`` watch a forward of a part of a batch.

        Raises:
            ValueError: The batch does not run through the network.
        """

        def dry() -> None:
            with evaluating(self, self.net):
                run(self.net, x, rows=2)

        see(dry)

    @contextmanager
    def activated(
        self, task: TaskId, weights: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        task = self._tasks.checked(task)
        check_weights(weights)
        if weights is None:
            weights = self._weights_in_place(task)
        norms = self.norms.states(task, learning=task == self._current)
        with self._network.applied(weights, norms) as net:
            yield net

    def _weights_in_place(self, task: int) -> Mapping[str, Tensor]:
        """Return the weights of a task's network, by name."""
        return self.task_weights(task)

    def _compile_net(self, compiler: Compiler) -> bool:
        """Compile the network, or leave it as it is; return whether that changed."""
        enabled = compiler.enabled(self._device)
        before = None if self._compiled_net is None else self._compiled_net.compiler
        changes = before is not (compiler if enabled else None)
        if changes:
            self._compiled_net = CompiledModule(self.net, compiler) if enabled else None
        return changes

    def compile_steps(self, compiler: Compiler) -> None:
        self._compile_net(compiler)

    def install_norms(self, net: nn.Module, task: TaskId) -> None:
        self.norms.install(net, self._tasks.checked(task))

    def manifest(self) -> list[dict[str, Any]]:
        return self._network.manifest()
