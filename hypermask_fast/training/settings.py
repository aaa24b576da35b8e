"""The settings of a trainer, each with what it means; imports no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import Settings, setting

WATCHING = ("plateau", "cosine_plateau")
"""The schedules that accuracies lower."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Settings of :class:`~hypermask_fast.training.trainer.Trainer`."""

    optimizer: str = setting(
        "adam",
        "optimizer: adam, sgd or rmsprop",
        "adam is :class:`~hypermask_fast.FactoredAdam`, the others PyTorch's",
        choices=("adam", "sgd", "rmsprop"),
    )
    lr: float = setting(1e-3, "learning rate", above=0.0)
    momentum: float = setting(0.0, "momentum of sgd and rmsprop", low=0.0, high=0.9999)
    weight_decay: float = setting(0.0, "weight decay, added to the gradient", low=0.0)
    adam_beta1: float = setting(
        0.9, "decay of Adam's mean of the gradient (its beta1)", low=0.0, high=0.9999
    )
    moments: str = setting(
        "float32",
        "type of Adam's moments of the full head: bfloat16 halves their memory",
        choices=("float32", "bfloat16"),
    )
    batch_size: int = setting(128, "examples in a training step", low=1)
    steps: int | None = setting(None, "training steps of a task (replaces epochs)", low=1)
    epochs: int | None = setting(
        None,
        "passes over the training data of a task (replaces steps)",
        "rounded up to whole steps",
        low=1,
    )
    schedule: str = setting(
        "constant",
        "learning rate: constant; lowered when validation accuracy stalls (plateau); a half cosine "
        "to 0 by steps or by epochs; lowered at milestones; or ExSSNeT's (cosine_plateau), for its "
        "published runs",
        "plateau (HyperMask on CIFAR-100): multiplied by sqrt(0.1) after 5 epochs without a better "
        "accuracy; milestones (HNET's ResNet): times 0.1, 0.01, 1e-3 and 5e-4 from 40, 60, 80 and "
        "90 % of a task's steps on; cosine_plateau: a cosine by epochs, and a tenth after each 11 "
        "epochs in which accuracy did not fall",
        choices=(
            "constant",
            "plateau",
            "cosine",
            "cosine_epochs",
            "milestones",
            "cosine_plateau",
        ),
    )
    warmup_steps: int = setting(
        0, "steps over which the learning rate rises from 0, in each phase of a task", low=0
    )
    selection: str = setting(
        "last",
        "model kept after a task: the last; the best on validation data; the best as published for "
        "HyperMask (accuracy from before the step, weights from after it); or the best on the test "
        "data, to repeat ExSSNeT's published runs, whose accuracies that makes too high",
        "best_on_test_data: test data are what validation data are elsewhere, for the schedule too",
        choices=("last", "best", "best_published", "best_on_test_data"),
    )
    check_every: int = setting(
        100,
        "steps between validation checks where the selection is not last",
        "epoch ends and the last step are checked too, and they alone with best_on_test_data",
        low=1,
    )
    eval_batch_size: int = setting(2000, "examples in an evaluation batch", low=1)
    graph: bool | Literal["auto"] = setting(
        "auto",
        "replay training steps as a CUDA graph: auto (on cuda where it works), true or false",
        "as in :class:`GraphedStep`; the losses of a step are then overwritten by the next",
    )
    compile: bool | Literal["auto"] = setting(
        "auto",
        "torch.compile the target network and the trunk: auto (on cuda where it works), true or "
        "false",
        "auto warns once where it fails",
    )

    def check(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                f"steps={self.steps} and epochs={self.epochs} are both given; give one of the two"
            )
        if self.optimizer == "adam" and self.momentum:
            raise ConfigError(
                f"momentum={self.momentum} is of sgd and rmsprop, and optimizer='adam' has betas; "
                "leave it out or choose another optimizer"
            )
        if self.optimizer != "adam" and self.adam_beta1 != 0.9:
            raise ConfigError(
                f"adam_beta1={self.adam_beta1} is Adam's, and the optimizer is {self.optimizer!r}; "
                "leave it out, or use optimizer='adam'"
            )
        if self.optimizer != "adam" and self.moments != "float32":
            raise ConfigError(
                f"moments={self.moments!r} are Adam's, and the optimizer is {self.optimizer!r}; "
                "use moments='float32'"
            )
        if self.optimizer != "adam" and self.graph is True:
            raise ConfigError(
                f"graph is True and the optimizer is {self.optimizer!r}, whose steps are not "
                "captured; use optimizer='adam', or graph='auto'"
            )
        if self.steps is not None and self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} is more than steps={self.steps}; the rate would "
                "never be reached, so give at most as many"
            )
        if self.warmup_steps and self.watches:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} changes the rate that schedule="
                f"{self.schedule!r} lowers; use 'constant' or 'cosine', or warmup_steps=0"
            )

    @property
    def validates(self) -> bool:
        """Whether accuracies on validation data are measured."""
        return self.measured == "validation" and (self.selection != "last" or self.watches)

    @property
    def measured(self) -> str:
        """The split whose accuracies select a model and lower the rate."""
        return "test" if self.selection == "best_on_test_data" else "validation"

    @property
    def watches(self) -> bool:
        """Whether accuracies lower the rate."""
        return self.schedule in WATCHING

    @classmethod
    def merged(cls, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """As in the base; ``steps`` that are changed replace ``epochs``, and the reverse."""
        result = {**values, **changes}
        for given, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(given) is not None and other not in changes:
                result[other] = None
        return result
