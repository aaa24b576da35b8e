"""SupSup: the weights stay as they were drawn, and each task learns a binary mask over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.fields import takes_options
from hypermask_fast.masks.top_k import threshold_weights
from hypermask_fast.methods.subnetwork import SubnetworkLearner
from hypermask_fast.methods.supsup.settings import SupSupSettings


@takes_options(SupSupSettings)
class SupSup(SubnetworkLearner):
    """SupSup (Wortsman et al.), over any network.

    A layer runs with ``W * M_t``, where W never changes and the scores of task t make M_t: its
    largest by magnitude, or those of at least 0. Gradients go straight through to the scores, the
    only thing that is trained. So nothing is forgotten: the logits of a task that was learned are
    the same ones, bit by bit, whatever is learned later. Use a new optimizer for each task.

    Args:
        net: The target network; see :class:`SubnetworkLearner` for what becomes of it.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen. Default: nothing.
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or the network has a part that cannot be masked; the
            network is left as it was.
    """

    settings_class = SupSupSettings
    _settings: SupSupSettings
    score_mean: Tensor | None

    def _add_own(self) -> None:
        self.rule, self.superfluous = self._settings.rule, self._settings.superfluous
        has_mean = self._settings.score_init == "mean"
        mean = torch.zeros_like(self.scores.detach()) if has_mean else None
        self.register_buffer("score_mean", mean)

    def _mask_of(self, scores: Tensor) -> Tensor:
        return scores >= 0 if self.rule == "threshold" else super()._mask_of(scores)

    def _products(self, scores: Tensor) -> list[Tensor]:
        if self.rule == "threshold":
            return threshold_weights(self._network.weights(), scores)
        return super()._products(scores)

    def _first_scores(self, task: int) -> Tensor:
        if self.score_mean is not None and self._learned:
            return self.score_mean
        return super()._first_scores(task)

    @torch.no_grad()
    def end_task(self, data: object = None) -> None:
        is_new = self._current not in self._learned
        super().end_task(data)
        # Of a task that went on, the mean has the scores of its first end.
        if self.score_mean is not None and is_new:
            self.score_mean.lerp_(self.scores, 1 / len(self._learned))

    def _own_outputs(self, outputs: Any, task: int, *, alone: bool) -> Any:
        return outputs if self.superfluous else super()._own_outputs(outputs, task, alone=alone)

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        mean = [] if self.score_mean is None else [self.score_mean]
        parts = super().memory_parts()
        return {**parts, "scores": [*parts["scores"], *mean]}
