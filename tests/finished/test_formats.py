"""A task's network in the files that others read puts out what the learner does."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hypermask_fast import export_subnet, networks
from hypermask_fast.errors import ConfigError
from hypermask_fast.finished.formats import bytes_of, outputs_of
from tests.support.conversion_cases import wrap


class Attending(nn.Module):
    """Attention over the places of a row, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.places = nn.Parameter(torch.randn(4, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x) + self.places
        found, _ = self.attend(h, h, h, need_weights=False)
        return self.out(self.norm(h + found).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: networks.MLP(5, (8,), 3), (5,)),
    "resnet": (lambda: networks.ResNet(1, 1, 3, track_running_stats=True), (3, 8, 8)),
    "attention": (Attending, (4, 5)),
}


@functools.cache
def exported(name: str) -> tuple[list[nn.Module], Tensor, list[Tensor]]:
    """Plain networks of two learned tasks, inputs, and what the learner puts out."""
    make, shape = NETWORKS[name]
    learner = wrap(make(), sparsity=30.0)
    for task in range(2):
        learner.train().begin_task(task)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        for _ in range(2):
            optimizer.zero_grad()
            x, y = torch.randn(4, *shape), torch.tensor([0, 1, 2, 1])
            learner.losses(x, y, task).total.backward()
            optimizer.step()
        learner.end_task()
    learner.eval()
    x = torch.randn(6, *shape)
    with torch.no_grad():
        wanted = [learner(x, task) for task in range(2)]
    return [export_subnet(learner, task) for task in range(2)], x, wanted


@pytest.mark.long
@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_puts_out_what_the_learner_does(name: str, form: str) -> None:
    if form == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    nets, x, wanted = exported(name)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)
    # Another number of rows than it was traced with.
    found = outputs_of(bytes_of(nets[0], x[:2], form), form, x)
    assert found is not None
    torch.testing.assert_close(found, wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_program_needs_no_class_of_this_package(tmp_path: Path) -> None:
    nets, x, wanted = exported("mlp")
    (tmp_path / "a.pt2").write_bytes(bytes_of(nets[1], x, "torch"))
    safetensors.torch.save_file({"x": x, "y": wanted[1]}, tmp_path / "wanted")
    code = (
        "import sys, torch\n"
        "from safetensors.torch import load_file\n"
        "d = load_file('wanted')\n"
        "net = torch.export.load('a.pt2').module()\n"
        "torch.testing.assert_close(net(d['x']), d['y'], rtol=1e-5, atol=1e-6)\n"
        "assert not [m for m in sys.modules if m.startswith('hypermask')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_safetensors_hold_the_state_dict() -> None:
    net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = nn.Parameter(torch.randn(3, 3).T)
    net.append(nn.Linear(3, 3))
    net[3].weight = net[2].weight
    data = bytes_of(net.eval(), torch.ones(2, 5), "safetensors", {"task": "a"})
    found = safetensors.torch.load(data)
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    assert b'"task": "a"' in data


class Deciding(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else -super().forward(x)


def test_what_cannot_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = Deciding(5, 3).eval()
    with pytest.raises(ConfigError, match=r"cannot hold this Deciding .*use format='safetensors'"):
        bytes_of(net, torch.ones(2, 5), "torch")
    with pytest.raises(ConfigError, match=r"format='onx' is unknown \(did you mean 'onnx'"):
        bytes_of(net, torch.ones(2, 5), "onx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        bytes_of(net, torch.ones(2, 5), "onnx")
