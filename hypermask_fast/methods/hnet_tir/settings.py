"""HNET+TIR's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from hypermask_fast.fields import setting
from hypermask_fast.methods.hnet.settings import HNETSettings
from hypermask_fast.methods.replay.settings import ReplaySettings


@dataclass(frozen=True, kw_only=True)
class HNETTIRSettings(ReplaySettings, HNETSettings):
    """Settings of :class:`~hypermask_fast.methods.hnet_tir.learner.HNETTIR`."""

    task_hidden: tuple[int, ...] = setting(
        (400, 400), "widths of the hidden layers of the classifier of tasks", low=1
    )
