"""A hypernetwork that does not fit is refused before it is made."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods import generated, head_memory

MIB = 2**20
LEARNERS = [hmf.HyperMask, hmf.HNET, hmf.HyperInterval]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))


OUTPUTS = 1000 * 1000 + 1000 + 1000 * 10 + 10


def with_memory(patch: pytest.MonkeyPatch, available: int | None) -> None:
    patch.setattr(head_memory, "available_memory", lambda device: available)


@pytest.mark.parametrize("make", LEARNERS)
def test_it_is_refused_before_it_is_made(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 100 * MIB)
    options = {} if make is hmf.HyperInterval else {"head": "full"}
    net = network()
    names = [type(module) for module in net.modules()]
    made: list[torch.device] = []
    original = nn.Linear.__init__

    def watched(self: nn.Linear, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if self.out_features >= OUTPUTS:
            made.append(self.weight.device)

    monkeypatch.setattr(nn.Linear, "__init__", watched)
    state = torch.get_rng_state()
    with pytest.raises(ConfigError) as found:
        make(net, hidden=(50,), **options)
    assert {device.type for device in made} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in net.modules()] == names
    message = str(found.value)
    needed, trained, available = (
        float(text.replace(",", "")) for text in re.findall(r"([\d,.]+) MiB", message)
    )
    rows = OUTPUTS * (2 if make is hmf.HyperInterval and f"{OUTPUTS:,}" not in message else 1)
    assert needed == pytest.approx(rows * 51 * 4 / MIB, rel=0.01)
    assert trained == pytest.approx(3 * needed, rel=0.001)
    assert available == 100.0
    # What it proposes is taken, and the next width is not said to fit.
    (width,) = re.findall(r"hidden=\((\d+),\)", message)
    assert ("head='chunked'" in message) is (make is not hmf.HyperInterval)
    monkeypatch.setattr(nn.Linear, "__init__", original)
    learner = make(network(), hidden=(int(width),), **options)
    head = learner.hypernetwork.head
    assert 3 * 4 * (head.weight.numel() + head.bias.numel()) < 100 * MIB


def test_what_fits_without_moments_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 60 * MIB)
    with pytest.warns(UserWarning, match=r"with Adam's moments .* what would train: .*chunked"):
        hmf.HyperMask(network(), hidden=(10,))


def test_a_chunked_head_and_unknown_memory_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 20 * MIB)
    hmf.HyperMask(network(), hidden=(50,), head="chunked", chunk_size=1000)
    with pytest.raises(ConfigError, match=r"what would fit: head='chunked'"):
        hmf.HyperMask(network(), hidden=(50,))
    with pytest.raises(ConfigError, match=r"what would fit: a smaller network"):
        hmf.HyperMask(network(), hidden=(50,), sparsity=30.0, mask_init="open")
    with_memory(monkeypatch, None)
    hmf.HyperMask(network(), hidden=(2,))


def test_nothing_is_refused_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1)
    with torch.device("meta"):
        learner = hmf.HyperMask(network(), hidden=(500,))
    assert learner.hypernetwork.head.weight.is_meta


@pytest.mark.parametrize("make", LEARNERS)
def test_the_check_draws_no_number(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> torch.Tensor:
        torch.manual_seed(0)
        return make(nn.Linear(4, 3), hidden=(5,)).hypernetwork.head.weight

    checked = made()
    monkeypatch.setattr(generated, "require_fit", lambda *_: None)
    assert torch.equal(made(), checked)
