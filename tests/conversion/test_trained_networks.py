"""Networks of every kind learn two tasks from three lines, and their exports give the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.vision import import_torchvision
from tests.support.network_cases import CLASSES, NETWORKS

# Both sides run the same operators of float32 on weights that were multiplied by masks before, or
# in the forward; what is left is the order of sums in other kernels of a product.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def learn_and_compare(net: nn.Module, x: Tensor, classes: int, **options: object) -> None:
    """Learn two tasks of other labels, and hold each task's export against the learner."""
    y = torch.arange(len(x)) % classes

    learner = hmf.HyperMask(net, embedding_dim=4, **options)
    trainer = hmf.Trainer(learner, batch_size=len(x), steps=2, progress=False)
    for name, labels in (("first", y), ("second", y.flip(0))):
        trainer.fit((x, labels), name=name, test=(x, labels))

    learner.eval()
    for task in range(2):
        with torch.no_grad():
            plain, own = hmf.export_subnet(learner, task)(x), learner(x, task)
        torch.testing.assert_close(plain[:, :classes], own[:, :classes], **CLOSE)
    assert not torch.allclose(learner(x, 0), learner(x, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_two_tasks(name: str) -> None:
    torch.manual_seed(0)
    made, inputs = NETWORKS[name]
    x = inputs()
    x = x.float() if x.is_floating_point() else x
    learn_and_compare(made(), x, CLASSES, hidden=(4,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_16", "swin_t"])
def test_torchvisions(name: str) -> None:
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    net = models.get_model(name, num_classes=10)
    x = torch.randn(2, 3, 224, 224)
    learn_and_compare(net, x, len(x), hidden=(1,), capacity=2)
