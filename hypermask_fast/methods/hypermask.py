"""HyperMask: a hypernetwork emits a semi-binary mask over one shared network for each task."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast import functional, reference
from hypermask_fast.conversion import Entry, convert, last_executed
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.hypernetwork import ChunkedHypernetwork, Hypernetwork, Target
from hypermask_fast.layers import MaskedConv2d, MaskedLinear, MaskedWeights
from hypermask_fast.methods.base import Learner, Losses, evaluating
from hypermask_fast.norms import NormState, NormTable, TaskNorm

_EXEMPT = "exempt: last bias"


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}{nearest(value, choices)}; choose one of {', '.join(choices)}"
        )


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity <= 100:
        raise ConfigError(f"sparsity is {sparsity}; give a percentage in [0, 100]")
    if 0 < sparsity < 1:
        warnings.warn(
            f"sparsity={sparsity} is in percent: it removes {sparsity} of 100 mask entries; give "
            f"{100 * sparsity:g} if a fraction was meant",
            stacklevel=3,
        )


class HyperMask(Learner):
    """HyperMask (Książek and Spurek), over any network of linear, conv and normalisation layers.

    For task t, z = h(e_t) holds a logit for each target parameter; the mask of a tensor is
    ``|tanh z|`` where that is at least its ``sparsity``-th percentile, else 0; the last layer's
    bias is not masked. The loss is ``CE + beta / max(1, t) * output_reg + lam * weight_reg``, where
    output_reg is the mean over the t earlier tasks of ``||z_j - z_j*||^2`` (so its factor on the
    sum is beta / t^2) and weight_reg the L1 drift of the target weights since the last task, both
    absent for the first task. All embeddings train. Use a new optimizer, or reset it, for each
    task.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it.

    Args:
        net: The target network.
        embedding_dim: Length of a task embedding.
        hidden: Widths of the hypernetwork's hidden layers.
        sparsity: Percent of each tensor's mask entries that are 0, in [0, 100]. Default 0: the
            mask only scales.
        beta: Weight of the output regulariser. Default 0.01.
        lam: Weight of the L1 drift, a sum over all weights. Default 1e-3.
        masked_l1: Multiply the drift by the mask. Default True.
        train_target: Train the target's weights; False keeps them as they are. Default True.
        bn: "per_task" (default): normalisation layers have parameters and statistics for each
            task. "batch" (published): shared parameters, and the batch's statistics also in
            evaluation. "frozen": as they are.
        dropout: "always" (default), "first_step" (published: only in the first step of a task) or
            "off".
        head: "full" (default) or "chunked".
        chunk_size, chunk_embedding_dim: For the chunked head.
        init: "default" (published: PyTorch's) or "hyperfan".
        activation: Of the hypernetwork, "elu" by default.
        capacity: Largest number of tasks. Default 128.
        exclude: Names or glob patterns of modules and parameters to leave plain and frozen.
        exempt: Name of the bias that is not masked; default: that of the masked layer which runs
            last, found by a dry forward.
        example_input: A batch for that dry forward; default: the first batch that comes.

    Raises:
        ConfigError: A setting is wrong, or the network has a part that cannot be masked.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        embedding_dim: int,
        hidden: Sequence[int] = (100,),
        sparsity: float = 0.0,
        beta: float = 0.01,
        lam: float = 1e-3,
        masked_l1: bool = True,
        train_target: bool = True,
        bn: str = "per_task",
        dropout: str = "always",
        head: str = "full",
        chunk_size: int = 8000,
        chunk_embedding_dim: int = 32,
        init: str = "default",
        activation: str = "elu",
        capacity: int = 128,
        exclude: Sequence[str] = (),
        exempt: str | None = None,
        example_input: Tensor | None = None,
    ) -> None:
        _check_sparsity(sparsity)
        _check_choice("bn", bn, ("batch", "per_task", "frozen"))
        _check_choice("dropout", dropout, ("always", "first_step", "off"))
        _check_choice("head", head, ("full", "chunked"))
        _check_choice("init", init, ("default", "hyperfan"))
        for name, value in (("beta", beta), ("lam", lam)):
            if not value >= 0:
                raise ConfigError(f"{name} is {value}; give a number that is not negative")
        super().__init__(net, capacity)
        self.sparsity, self.beta, self.lam = sparsity, beta, lam
        self.masked_l1, self.train_target = masked_l1, train_target
        self.bn, self.dropout = bn, dropout
        self._entries = convert(net, tuple(exclude))
        self._layers = self._masked_layers()
        self._norms = [m for m in net.modules() if isinstance(m, TaskNorm)]
        self._dropouts = [m for m in net.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        masked = [entry for entry in self._entries if entry.offset >= 0]
        parameters = dict(net.named_parameters())
        options: dict[str, Any] = {
            "embedding_dim": embedding_dim,
            "hidden": hidden,
            "capacity": capacity,
            "activation": activation,
            "device": parameters[masked[0].name].device,
            "dtype": parameters[masked[0].name].dtype,
        }
        if head == "chunked":
            options |= {"chunk_size": chunk_size, "chunk_embedding_dim": chunk_embedding_dim}
        make = ChunkedHypernetwork if head == "chunked" else Hypernetwork
        self.hypernetwork = make(sum(entry.size for entry in masked), **options)
        if init == "hyperfan":
            self.hypernetwork.hyperfan_(self._hyperfan_targets(masked))
        self.norm_tables = nn.ModuleList(
            NormTable(norm, capacity) for norm in (self._norms if bn == "per_task" else [])
        )
        self._exempt: str | None = None
        self._traced = False
        self._step = 0
        self._ramp_steps = 0
        self._ids: Tensor | None = None
        self._targets: Tensor | None = None
        self._previous: list[Tensor] | None = None
        if exempt is not None:
            self._set_exempt(exempt)
        elif example_input is not None:
            self._trace(example_input)

    def _masked_layers(self) -> list[tuple[MaskedLinear | MaskedConv2d, str]]:
        layers: list[tuple[MaskedLinear | MaskedConv2d, str]] = []
        for name, module in self.net.named_modules():
            if isinstance(module, (MaskedLinear, MaskedConv2d)):
                module.mask_source = f"hyper(p={self.sparsity:g})"
                layers.append((module, f"{name}." if name else ""))
        return layers

    def _hyperfan_targets(self, masked: Sequence[Entry]) -> list[Target]:
        parameters = dict(self.net.named_parameters())
        fans: dict[str, Target] = {}
        for layer, prefix in self._layers:
            weight, fan_in = layer.weight, layer.weight[0].numel()
            has_bias = layer.bias is not None
            fans[f"{prefix}weight"] = Target(weight.numel(), fan_in, False, has_bias)
            fans[f"{prefix}bias"] = Target(len(weight), fan_in, True, has_bias)
        return [fans[entry.name] for entry in masked if entry.name in parameters]

    @property
    def exempt(self) -> str | None:
        """Name of the bias that is not masked; None before the first batch, or where there is none."""
        return self._exempt

    def _set_exempt(self, name: str | None) -> None:
        names = [entry.name for entry in self._entries if entry.offset >= 0]
        if name is not None and name not in names:
            raise ConfigError(
                f"exempt is {name!r}{nearest(name, names)}; give a masked parameter of the network"
            )
        self._entries = [
            replace(entry, masked=False, reason=_EXEMPT) if entry.name == name else entry
            for entry in self._entries
        ]
        self._exempt, self._traced = name, True

    def _trace(self, x: Tensor) -> None:
        """Find the bias to exempt: that of the masked layer that runs last."""

        def run() -> None:
            with evaluating(self.net), self._norms_set(None):
                try:
                    self.net(x[:2])
                except RuntimeError as error:
                    raise ValueError(
                        f"an input of shape {tuple(x.shape)} does not run through "
                        f"{type(self.net).__name__}: {error}"
                    ) from error

        last, idle = last_executed(self.net, run)
        if last is None:
            raise ConfigError(
                f"no masked layer of {type(self.net).__name__} ran in a forward, so its masks "
                "would have no effect; call the layers, not functions of their weights"
            )
        if idle:
            warnings.warn(
                f"{', '.join(idle)} did not run in a forward: their masks have no effect there; "
                "pass exclude= to leave them out",
                stacklevel=4,
            )
        bias = f"{last}.bias".lstrip(".")
        names = [entry.name for entry in self._entries if entry.offset >= 0]
        self._set_exempt(bias if bias in names else None)

    def tables(self) -> list[nn.Parameter]:
        return [self.hypernetwork.embeddings, *self.norm_tables.parameters()]

    def begin_task(self, task: int, *, ramp_steps: int = 0) -> None:
        """Start learning a task: record the earlier tasks' logits and the weights to stay near.

        Args:
            task: A task that was added.
            ramp_steps: In the first task, raise the sparsity linearly from 0 over this many calls
                of :meth:`losses` (published: all of the task's steps). Default 0: no ramp.

        Raises:
            ValueError: The task was not added, or ramp_steps is negative.
            RuntimeError: Another task has not been ended.
        """
        if ramp_steps < 0:
            raise ValueError(f"ramp_steps is {ramp_steps}; give 0 or more")
        super().begin_task(task)
        earlier = [j for j in self._learned if j != self._current]
        device = self.hypernetwork.embeddings.device
        self._ids = torch.tensor([self._current, *earlier], device=device)
        self._targets = self.hypernetwork.targets(self._ids)
        keeps_weights = bool(earlier) and self.train_target and self.lam > 0
        self._previous = [w.clone() for w in self._weights()] if keeps_weights else None
        self._step = 0
        self._ramp_steps = 0 if earlier else ramp_steps

    def end_task(self) -> None:
        super().end_task()
        self._ids = self._targets = self._previous = None

    @property
    def step_sparsity(self) -> float:
        """Percent of mask entries removed in the step that was taken last."""
        if self._step < self._ramp_steps:
            return self.sparsity * self._step / self._ramp_steps
        return self.sparsity

    def _weights(self) -> list[Tensor]:
        parameters = dict(self.net.named_parameters())
        weights = [parameters[entry.name] for entry in self._entries if entry.offset >= 0]
        return [w.detach() for w in weights]

    def _masked(self, logits: Tensor, sparsity: float) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the masked weights by name, and the masks of all tensors (exempt ones too)."""
        entries = [entry for entry in self._entries if entry.offset >= 0]
        parameters = dict(self.net.named_parameters())
        weights = [parameters[entry.name] for entry in entries]
        if not self.train_target:
            weights = [w.detach() for w in weights]
        parts = logits.split([entry.size for entry in entries])
        shaped = [z.view(entry.shape) for z, entry in zip(parts, entries, strict=True)]
        thresholds = [
            functional.mask_threshold(z, sparsity) if entry.masked else None
            for z, entry in zip(shaped, entries, strict=True)
        ]
        products, masks = reference.mask_weights(weights, shaped, thresholds)
        named = {
            entry.name: product if entry.masked else weight
            for entry, product, weight in zip(entries, products, weights, strict=True)
        }
        return named, masks

    @contextmanager
    def _norms_set(self, task: int | None) -> Iterator[None]:
        for index, norm in enumerate(self._norms):
            if self.bn == "per_task":
                if task is not None:
                    norm.active = self.norm_tables[index].state(task, norm.training)
            elif self.bn == "batch":
                norm.active = NormState(norm.weight, norm.bias)
            else:
                norm.active = NormState(
                    norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var
                )
        try:
            yield
        finally:
            for norm in self._norms:
                vars(norm).pop("active", None)

    @contextmanager
    def _applied(self, weights: Mapping[str, Tensor], task: int) -> Iterator[nn.Module]:
        for layer, prefix in self._layers:
            bias = layer.bias
            layer.active = MaskedWeights(
                weights.get(f"{prefix}weight", layer.weight),
                None if bias is None else weights.get(f"{prefix}bias", bias),
            )
        try:
            with self._norms_set(task):
                yield self.net
        finally:
            for layer, _ in self._layers:
                vars(layer).pop("active", None)

    def _task_weights(self, task: int, sparsity: float) -> dict[str, Tensor]:
        ids = torch.tensor([task], device=self.hypernetwork.embeddings.device)
        logits, _ = self.hypernetwork(ids)
        return self._masked(logits, sparsity)[0]

    @contextmanager
    def activated(
        self, task: int, weights: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        """Make :attr:`net` the task's network inside a ``with`` block; masks are formed once.

        Args:
            task: A task that was added.
            weights: Masked weights to use, from :meth:`masked_weights`; default: the present ones.

        Raises:
            ValueError: The task was not added.
        """
        task = self._checked(task)
        self._require_trace()
        if weights is None:
            weights = self._task_weights(task, self.sparsity)
        with self._applied(weights, task) as net:
            yield net

    def _require_trace(self) -> None:
        if not self._traced:
            raise RuntimeError(
                "the bias that is not masked is still unknown; run learner(x, task) or losses() "
                "once, or build HyperMask with example_input= or exempt="
            )

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        if not self._traced:
            self._trace(x)
        return super().forward(x, task)

    forward.__doc__ = Learner.forward.__doc__

    @torch.no_grad()
    def masked_weights(self, task: int, *, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return copies of the masked target parameters of a task, by name.

        Args:
            task: A task that was added.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added.
        """
        self._require_trace()
        weights = self._task_weights(
            self._checked(task), self.sparsity if sparsity is None else sparsity
        )
        return {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def masks(self, task: int, *, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return the masks of a task by parameter name; the exempt bias has none.

        Args and errors: as in :meth:`masked_weights`.
        """
        self._require_trace()
        ids = torch.tensor([self._checked(task)], device=self.hypernetwork.embeddings.device)
        logits, _ = self.hypernetwork(ids)
        _, masks = self._masked(logits, self.sparsity if sparsity is None else sparsity)
        entries = [entry for entry in self._entries if entry.offset >= 0]
        return {e.name: m for e, m in zip(entries, masks, strict=True) if e.masked}

    def losses(self, x: Tensor, y: Tensor, task: int) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Each call counts as a step of the sparsity ramp and of ``dropout="first_step"``.

        Args:
            x: Inputs (batch, ...), of the network's dtype.
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        task = self._checked_batch(x, y, task)
        if not self._traced:
            self._trace(x)
        self._step += 1
        assert self._ids is not None
        logits, output_reg = self.hypernetwork(self._ids, self._targets)
        weights, masks = self._masked(logits, self.step_sparsity)
        self._set_dropout()
        with self._applied(weights, task) as net:
            outputs = self._own_outputs(net(x), task)
        try:
            task_loss = F.cross_entropy(outputs, y)
        except IndexError as error:
            raise ValueError(
                f"labels reach from {int(y.min())} to {int(y.max())} and the network has "
                f"{outputs.shape[-1]} outputs; labels are counted from 0 within each task"
            ) from error
        weight_reg = self._drift(masks)
        earlier = len(self._ids) - 1
        total = task_loss + self.beta / max(1, earlier) * output_reg + self.lam * weight_reg
        return Losses(total, task_loss, output_reg, weight_reg, outputs)

    def _drift(self, masks: Sequence[Tensor]) -> Tensor:
        if self._previous is None:
            return masks[0].new_zeros(())
        parameters = dict(self.net.named_parameters())
        weights = [parameters[entry.name] for entry in self._entries if entry.offset >= 0]
        return reference.l1_drift(weights, self._previous, masks if self.masked_l1 else None)

    def _set_dropout(self) -> None:
        if self.dropout != "always":
            acts = self.dropout == "first_step" and self._step == 1
            for module in self._dropouts:
                module.training = acts and self.training

    def install_norms(self, net: nn.Module, task: int) -> None:
        """Copy the task's normalisation into a plain copy of the target network."""
        layers = [
            module
            for module, ours in zip(net.modules(), self.net.modules(), strict=True)
            if isinstance(ours, TaskNorm)
        ]
        for table, layer in zip(self.norm_tables, layers, strict=False):
            table.install(layer, task)
        if self.bn == "batch":
            for layer in layers:
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    def manifest(self) -> list[dict[str, Any]]:
        """Return name, shape, offset, masked and reason of every target parameter, for JSON."""
        return [{**asdict(entry), "shape": list(entry.shape)} for entry in self._entries]

    def report(self) -> str:
        """Return a table of the target's parameters: which are masked, which are not and why."""
        rows = [
            (
                entry.name,
                "x".join(map(str, entry.shape)),
                f"{entry.size:,}",
                "masked" if entry.masked else self._reason(entry),
            )
            for entry in self._entries
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {shape:>{widths[1]}}  {size:>{widths[2]}}  {status}"
            for name, shape, size, status in rows
        ]
        count = sum(p.numel() for p in self.hypernetwork.parameters())
        masked = sum(entry.size for entry in self._entries if entry.masked)
        total = sum(entry.size for entry in self._entries)
        size = self.hypernetwork.head.weight.element_size()
        lines += [
            f"{masked:,} of {total:,} target parameters are masked, at {self.sparsity:g} % sparsity",
            f"hypernetwork: {count:,} parameters, {count * size / 2**20:,.1f} MiB; "
            f"with gradients and Adam's moments {4 * count * size / 2**20:,.1f} MiB",
        ]
        if not self._traced:
            lines.append("the last layer's bias will be exempt: found at the first batch")
        return "\n".join(lines)

    def _reason(self, entry: Entry) -> str:
        if entry.reason != "normalisation":
            return entry.reason
        kinds = {"per_task": "a copy for each task", "batch": "shared", "frozen": "frozen"}
        return f"{entry.reason}: {kinds[self.bn]}"

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        if self._targets is not None:
            tensors["targets"] = self._targets
        for index, weight in enumerate(self._previous or ()):
            tensors[f"previous/{index}"] = weight
        ids = None if self._ids is None else self._ids.tolist()
        state |= {
            "ids": ids,
            "step": self._step,
            "ramp_steps": self._ramp_steps,
            "exempt": self._exempt,
            "traced": self._traced,
        }
        return tensors, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        device = self.hypernetwork.embeddings.device
        self._targets = tensors["targets"].to(device) if "targets" in tensors else None
        count = sum(name.startswith("previous/") for name in tensors)
        previous = [tensors[f"previous/{index}"].to(device) for index in range(count)]
        self._previous = previous or None
        self._ids = None if state["ids"] is None else torch.tensor(state["ids"], device=device)
        self._step, self._ramp_steps = state["step"], state["ramp_steps"]
        if state["traced"]:
            self._set_exempt(state["exempt"])
