"""Plain networks of single tasks, which do not need this package."""

from __future__ import annotations

import copy

from torch import nn

from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.layers.masked import MASKED_LAYERS
from hypermask_fast.methods.base import Learner, check_learner


def export_subnet(learner: Learner, task: int) -> nn.Module:
    """Return a plain copy of the target network with the weights of a task.

    The copy has the class of the original network, is in evaluation mode and does not need this
    package. With ``bn="per_task"`` it holds the task's normalisation. Outputs that the task has no
    classes for, which the learner gives as -inf, are those of the shared layer here.

    Args:
        learner: The learner; it is not changed.
        task: A task that was added.

    Raises:
        ValueError: The task was not added.
        TypeError: It is no learner.
        RuntimeError: The learner has seen no input, so that the unmasked bias is not known yet.
    """
    check_learner(learner)
    learner.check_network()
    weights = learner.task_weights(task)
    net = unconvert(copy.deepcopy(learner.net))
    learner.install_norms(net, task)
    parameters = dict(net.named_parameters())
    for name, value in weights.items():
        parameters[name].data.copy_(value)
    plain: dict[type[nn.Module], type[nn.Module]]
    plain = {cls: kind for kind, cls in MASKED_LAYERS.items()}
    for module in net.modules():
        # Layers that their author masked by hand.
        module.__class__ = plain.get(type(module), type(module))
    return net.eval()
