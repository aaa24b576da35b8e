"""An exported subnet is a plain network, and equal to the learner's."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypermask_fast import export_subnet, networks
from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear
from hypermask_fast.methods.hypermask.learner import HyperMask
from tests.support.conversion_cases import IMAGES, clone_state, normed, wrap


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def train_a_little(learner: HyperMask, shape: tuple[int, ...]) -> None:
    for task in range(2):
        learner.train()
        learner.begin_task(task)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        for _ in range(2):
            learner.losses(torch.randn(shape), torch.tensor([0, 1, 1]), task).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        learner.end_task()
    learner.eval()


EXPORTS = [
    pytest.param(lambda: networks.MLP(12, (7,), 3), (3, 12), {}, id="mlp"),
    pytest.param(lambda: networks.MLP(12, (7,), 3, bias=False), (3, 12), {}, id="no-bias"),
    *(
        pytest.param(convolutional, IMAGES, {"bn": bn}, id=f"conv-{bn}")
        for bn in ("per_task", "batch", "frozen")
    ),
    pytest.param(lambda: networks.ResNet(1, 1, 3), IMAGES, {"bn": "batch"}, id="published-resnet"),
    pytest.param(normed, (3, 5), {"exclude": "1"}, id="excluded-norm"),
    pytest.param(normed, (3, 5), {"exclude": "3", "train_target": False}, id="excluded-layer"),
    pytest.param(
        lambda: nn.Sequential(MaskedLinear(5, 4), nn.LayerNorm(4), MaskedLinear(4, 3)),
        (3, 5),
        {},
        id="masked-by-hand",
    ),
    pytest.param(
        lambda: nn.Sequential(MaskedConv2d(1, 2, 3, padding_mode="circular"), nn.Flatten()),
        (3, 1, 3, 3),
        {},
        id="conv",
    ),
]


@pytest.mark.parametrize(("make", "shape", "options"), EXPORTS)
def test_an_exported_subnet_is_plain_and_equal(
    make: Callable[[], nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    net = make()
    kind = type(net)
    learner = wrap(net, sparsity=20.0, **options)
    train_a_little(learner, shape)
    x = torch.randn(4, *shape[1:])
    state = clone_state(learner)
    for task in range(2):
        subnet = export_subnet(learner, task)
        assert type(subnet) is kind
        assert not subnet.training
        for name, module in subnet.named_modules():
            assert type(module).__module__.startswith(("torch.nn", "hypermask_fast.networks")), name
            for key, value in vars(module).items():
                assert "hypermask" not in f"{key} {type(value)}", (name, key)
        with torch.no_grad():
            torch.testing.assert_close(subnet(x), learner(x, task), rtol=1e-5, atol=1e-6)
        buffer = io.BytesIO()
        torch.save(subnet.state_dict(), buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        assert all(torch.equal(loaded[k], v) for k, v in subnet.state_dict().items())
    for name, value in learner.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_subnet_of_torch_modules_unpickles_without_this_package(tmp_path: Path) -> None:
    learner = wrap(normed(), sparsity=20.0)
    train_a_little(learner, (3, 5))
    x = torch.randn(4, 5)
    subnet = export_subnet(learner, 1)
    torch.save({"net": subnet, "x": x, "y": learner(x, 1).detach()}, tmp_path / "subnet.pt")
    code = (
        "import sys, torch\n"
        "d = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(d['net'](d['x']), d['y'], rtol=1e-5, atol=1e-6)\n"
        "assert not [m for m in sys.modules if m.startswith('hypermask')]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "subnet.pt")], check=True, cwd=tmp_path
    )


def test_a_subnet_of_batch_mode_has_norms_without_running_statistics() -> None:
    learner = wrap(networks.ResNet(1, 1, 3, track_running_stats=True), bn="batch")
    train_a_little(learner, IMAGES)
    subnet, published = export_subnet(learner, 0), networks.ResNet(1, 1, 3)
    assert repr(subnet) == repr(published)
    published.load_state_dict(subnet.state_dict(), strict=True)
    x = torch.randn(IMAGES)
    assert torch.equal(published.eval()(x), subnet(x))


def test_a_subnet_shares_nothing_with_the_learner() -> None:
    learner = wrap(normed(), bn="batch", train_target=False)
    learner.eval()(torch.randn(2, 5), 0)
    subnet = export_subnet(learner, 0)
    assert all(p.requires_grad for p in subnet.parameters())
    before = clone_state(learner)
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def test_export_asks_for_an_input_first_and_a_task_that_exists() -> None:
    learner = wrap(normed())
    with pytest.raises(RuntimeError, match="still unknown; run learner"):
        export_subnet(learner, 0)
    learner.eval()(torch.randn(2, 5), 0)
    with pytest.raises(ValueError, match="task 2 was not added"):
        export_subnet(learner, 2)
