"""A learner in a file: the same one in a new process, or one sentence why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.runs.run import build
from hypermask_fast.saving import learner_file
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support import alternating
from tests.support.conversion_cases import Branched, clone_state, normed, wrap

alternating.register()
_EMBEDDED: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 3}
METHODS: dict[str, dict[str, Any]] = {
    "hypermask": {**_EMBEDDED, "sparsity": 20.0},
    "hnet": {**_EMBEDDED, "chunk_embedding_dim": 2, "chunk_size": 100, "task_heads": "multi"},
    "hnet-tir": {},
    "hnet-r": {},
    "supsup": {},
    "exssnet": {},
    "hyperinterval": _EMBEDDED,
}


def trained(method: str, tasks: int = 2) -> tuple[Scenario, Trainer]:
    preset = "split-digits" if method == "hypermask" else f"{method}-split-digits"
    small = {"tasks": 3, "steps": 4, "mlp_hidden": (6,), "batch_size": 16, "device": "cpu"}
    scenario, trainer = build(RunConfig.from_preset(preset, **{**small, **METHODS[method]}))
    for task in scenario.tasks[:tasks]:
        trainer.fit(task)
    trainer.learner.eval()
    return scenario, trainer


def outputs(learner: Learner, x: Tensor) -> Tensor:
    learner.eval()
    with torch.no_grad():
        return torch.stack([learner(x, task) for task in range(len(learner.tasks))])


def state_of(learner: Learner) -> dict[str, Any]:
    tensors, state = learner.task_state()
    return {**clone_state(learner), **tensors, "": json.dumps(state)}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal if isinstance(value, Tensor) else str.__eq__
        assert equal(value, other[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_learner_is_the_same_and_learns_the_next_task_alike(
    method: str, tmp_path: Path
) -> None:
    scenario, trainer = trained(method)
    x, before = torch.rand(5, 1, 8, 8), torch.get_rng_state()
    hmf.save(trainer.learner, tmp_path / "a.hmf")
    loaded = hmf.load(tmp_path / "a.hmf")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(trainer.learner)
    assert (loaded.tasks, loaded.learned) == (trainer.learner.tasks, trainer.learner.learned)
    assert not loaded.training
    assert torch.equal(outputs(loaded, x), outputs(trainer.learner, x))
    found = []
    for learner in (trainer.learner, loaded):
        torch.manual_seed(1)
        again = hmf.Trainer(learner, progress=False, seed=1, settings=trainer.settings)
        again.fit(scenario[2])
        found.append(state_of(learner))
    assert_same(*found)


def test_all_methods_in_a_new_process(tmp_path: Path) -> None:
    x = torch.rand(5, 1, 8, 8)
    wanted = {}
    for method in METHODS:
        learner = trained(method)[1].learner
        hmf.save(learner, tmp_path / method)
        wanted[method] = outputs(learner, x)
    save_file({**wanted, "x": x}, tmp_path / "wanted")
    # The copy is aligned as x is: where the factors lie decides how a CPU rounds a product.
    code = (
        "import sys, torch, hypermask_fast as hmf\n"
        "from safetensors.torch import load_file\n"
        "wanted = load_file('wanted'); x = wanted.pop('x').clone()\n"
        "for name, outputs in wanted.items():\n"
        "    learner = hmf.load(name)\n"
        "    found = [learner(x, t) for t in range(len(learner.tasks))]\n"
        "    assert torch.equal(torch.stack(found), outputs), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("method", ["hypermask", "hnet", "exssnet", "hyperinterval", "hnet-tir"])
def test_a_learner_within_a_task_goes_on(method: str, tmp_path: Path) -> None:
    scenario, trainer = trained(method, tasks=1)
    learner, stream = trainer.learner, scenario[1].stream(16)
    optimizers: dict[str, Any] = {}

    def steps(learner: Learner, first: int) -> None:
        optimizers.clear()
        for group in learner.parameter_groups(learner.phase):
            options = [{"params": [*group.params]}]
            if group.optimizer in optimizers:
                optimizers[group.optimizer].add_param_group(options[0])
            else:
                optimizers[group.optimizer] = torch.optim.Adam(options, lr=0.01)
        for step in range(first, first + 2):
            learner.step(*stream.batch(step), 1, optimizers)

    learner.train().begin_task(1, steps=10)
    steps(learner, 0)
    hmf.save(learner, tmp_path / "a.hmf")
    found = []
    for each in (learner, hmf.load(tmp_path / "a.hmf").train()):
        torch.manual_seed(1)
        steps(each, 2)
        found.append(state_of(each))
        each.end_task()
        assert each.learned == (0, 1)
    assert_same(*found)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a[0]*": nn.Linear(5, 6), "a0": nn.Linear(6, 6)})
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["a0"](torch.relu(self.body["a[0]*"](x)))
        return self.out(self.norm(x) * self.scale)


PATTERNS: list[dict[str, Any]] = [
    {"exclude": "norm", "shared": lambda name, part: name == "scale"},
    {"per_task": lambda name, part: getattr(part, "out_features", 0) == 3, "exclude": "body.a[[]*"},
    {"shared": nn.BatchNorm1d, "per_task": ["scale", "body.a0.bias"], "bn": "batch"},
]


def learn(learner: hmf.HyperMask, steps: int = 3) -> None:
    for task in range(2):
        learner.train().begin_task(task, steps=steps)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        for _ in range(steps):
            dtype = next(learner.net.parameters()).dtype
            x, y = torch.randn(8, 5, dtype=dtype), torch.arange(8) % 3
            optimizer.zero_grad()
            learner.losses(x, y, task).total.backward()
            optimizer.step()
        learner.end_task()


@pytest.mark.parametrize("options", PATTERNS, ids=["exclude", "per_task", "shared"])
def test_parts_chosen_by_class_or_function_are_chosen_again(
    options: dict[str, Any], tmp_path: Path
) -> None:
    learner = wrap(Own(), sparsity=20.0, **options)
    learn(learner)
    hmf.save(learner, tmp_path / "a.hmf")
    with pytest.raises(CheckpointError, match=r"give a new one: hmf\.load"):
        hmf.load(tmp_path / "a.hmf")
    loaded = hmf.load(tmp_path / "a.hmf", Own())
    assert loaded.manifest() == learner.manifest()
    grads = [{n: p.requires_grad for n, p in each.named_parameters()} for each in (learner, loaded)]
    assert grads[0] == grads[1]
    assert torch.equal(outputs(loaded, torch.ones(2, 5)), outputs(learner, torch.ones(2, 5)))
    learn(learner)
    torch.manual_seed(0)
    hmf.save(learner, tmp_path / "a.hmf")
    loaded = hmf.load(tmp_path / "a.hmf", Own())
    assert torch.equal(outputs(loaded, torch.ones(2, 5)), outputs(learner, torch.ones(2, 5)))


def test_what_was_set_since_the_constructor_and_dtypes_are_kept(tmp_path: Path) -> None:
    learner = wrap(hmf.networks.MLP(5, (6,), 3)).double()
    learner.sparsity, learner.beta = 40.0, 0.5
    learner.net.get_parameter("classifier.bias").requires_grad_(False)
    for _ in range(3):
        learner.add_task()
    learn(learner)
    hmf.save(learner, tmp_path / "a.hmf")
    loaded = hmf.load(tmp_path / "a.hmf")
    assert (loaded.sparsity, loaded.beta, loaded.capacity) == (40.0, 0.5, learner.capacity)
    frozen = [n for n, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen == ["net.classifier.bias"]
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(outputs(loaded, x), outputs(learner, x))


def test_a_criterion_is_asked_for_and_the_dimension_of_classes_kept(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2)))
    learner = hmf.HyperMask(net, **METHODS["hypermask"]).eval()
    x = torch.rand(3, 5)
    learner.class_dim = 1
    learner.add_task(classes=[0])
    learner.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0]))
    expected = learner(x, 0)
    hmf.save(learner, tmp_path / "a.hmf")
    fresh = nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2)))
    with pytest.warns(RuntimeWarning, match="the criterion BCEWithLogitsLoss.*; set learner.crit"):
        again = hmf.load(tmp_path / "a.hmf", fresh)
    assert again.class_dim == 1
    assert again.criterion is None
    assert torch.equal(again(x, 0), expected)


def test_a_function_that_makes_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from tests.support.conversion_cases import Branched, normed\n"
        "class Nets:\n    branched = Branched\n    broken = [].index\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    learner = wrap(normed())
    learn(learner)
    with pytest.raises(ConfigError, match=r"makes another network .*: the network is Branched"):
        hmf.save(learner, tmp_path / "a.hmf", network="my_networks:Nets.branched")
    with pytest.raises(ConfigError, match=r"raised a TypeError \(index expected.*give a function"):
        hmf.save(learner, tmp_path / "a.hmf", network="my_networks:Nets.broken")
    assert not (tmp_path / "a.hmf").exists()
    hmf.save(learner, tmp_path / "a.hmf", network="my_networks:normed")
    x = torch.randn(2, 5)
    assert torch.equal(outputs(hmf.load(tmp_path / "a.hmf"), x), outputs(learner, x))


def test_a_network_of_ours_that_was_changed_is_not_taken_for_the_original(tmp_path: Path) -> None:
    net = hmf.networks.MLP(5, (6,), 3)
    net.classifier = nn.Linear(6, 4)
    learner = wrap(net)
    hmf.save(learner, tmp_path / "a.hmf")
    with pytest.raises(CheckpointError, match="give a new one"):
        hmf.load(tmp_path / "a.hmf")


def test_another_network_is_refused_and_stays_plain(tmp_path: Path) -> None:
    learner = wrap(normed())
    hmf.save(learner, tmp_path / "a.hmf")
    other = normed()
    other[3] = nn.Linear(6, 4)
    nets = {
        "the network is Branched in place of Seq": Branched(),
        r"3 is Linear\(in_features=6, out_features=4, bias=True\)": other,
    }
    for words, net in nets.items():
        before = [type(m) for m in net.modules()]
        with pytest.raises(CheckpointError, match=words):
            hmf.load(tmp_path / "a.hmf", net)
        assert [type(m) for m in net.modules()] == before
    hmf.save(wrap(Own()), tmp_path / "b.hmf")
    net = Own()
    net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match=r"net.scale of shape \(6,\) and .* of \(1,\)"):
        hmf.load(tmp_path / "b.hmf", net)
    assert type(net.out) is nn.Linear
    hmf.HyperMask(net, embedding_dim=2, hidden=(2,))


def test_a_method_from_outside(tmp_path: Path) -> None:
    learner = alternating.AlternatingLearner(hmf.networks.MLP(5, (6,), 3), decay=0.5)
    learner.add_task()
    hmf.save(learner, tmp_path / "a.hmf")
    loaded = hmf.load(tmp_path / "a.hmf")
    assert isinstance(loaded, alternating.AlternatingLearner)
    assert loaded.decay == 0.5

    class Mine(hmf.HyperMask):
        pass

    with pytest.raises(ConfigError, match=r"the learner is a Mine.*register\(\) the class"):
        hmf.save(Mine(normed(), embedding_dim=2, hidden=(2,)), tmp_path / "b.hmf")


def flipped(place: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = place(data)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a weight": flipped(lambda data: len(data) - 3),
    "a setting": flipped(lambda data: data.index(b'sparsity\\": 4') + 12),
    "the digest": flipped(lambda data: data.index(b'"sha256": "') + 15),
    "a shape": flipped(lambda data: data.index(b'"shape": [') + 10),
    "the kind": flipped(lambda data: data.index(b"hypermask_fast learner")),
    "the length": flipped(lambda data: 1),
    "its end": lambda data: data[:-1],
    "half of it": lambda data: data[: len(data) // 2],
    "all of it": lambda data: b"",
    "nothing, but more": lambda data: data + b"\0",
    "its version": lambda data: data.replace(b'"version": "1"', b'"version": "2"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.hmf"
    hmf.save(wrap(hmf.networks.MLP(5, (6,), 3), sparsity=40.0), path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        hmf.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_learners_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = wrap(hmf.networks.MLP(5, (6,), 3))
    save_file({"x": torch.ones(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in ("weights.safetensors", "text", "link"):
        before = (tmp_path / name).read_bytes() if name != "link" else b""
        with pytest.raises(ConfigError, match="is not overwritten; choose another path"):
            hmf.save(learner, tmp_path / name)
        assert name == "link" or (tmp_path / name).read_bytes() == before
    with pytest.raises(ConfigError, match="is a folder"):
        hmf.save(learner, tmp_path)
    path = tmp_path / "a.hmf"
    hmf.save(learner, path)
    first = path.read_bytes()
    learner.add_task("new")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            hmf.save(learner, path)
    assert path.read_bytes() == first
    # As a kill leaves it.
    (tmp_path / ".tmp-a.hmf").write_bytes(b"half")
    hmf.save(learner, path)
    assert hmf.load(path).tasks == learner.tasks
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_file_is_safetensors_and_json(tmp_path: Path) -> None:
    learner = wrap(hmf.networks.MLP(5, (6,), 3))
    hmf.save(learner, tmp_path / "a.hmf")
    with safe_open(tmp_path / "a.hmf", framework="pt") as file:
        names = set(file.keys())
        described = json.loads(file.metadata()["learner"])
    assert "learner/net.hidden.0.weight" in names
    assert described["method"] == "hypermask"
    assert described["settings"]["embedding_dim"] == 2
    assert [task["name"] for task in described["task"]["tasks"]] == ["task 0", "task 1"]
    assert learner_file.read(tmp_path / "a.hmf")[1] == described
