"""Frozen tasks: their outputs keep their bits, whatever is trained later."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import hypermask_fast as hmf
from hypermask_fast.errors import CheckpointError
from hypermask_fast.inference.export import export_subnet
from hypermask_fast.methods.extra_state import moving_of, weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.scenarios import split
from hypermask_fast.training.trainer import Trainer
from tests.support.hypermask_cases import batch, make, mixed_net, perturb
from tests.support.scenario_cases import make_dataset

Bits = dict[str, Tensor]


class Averaging(nn.Module):
    """A layer with a bias, and a buffer that a forward in training mode moves."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.5)
        return x - self.mean + self.shift


class Recurrent(nn.Module):
    """A recurrent layer, some of whose weights are shared, before a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 6, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.rnn(x[:, :, None])[0][:, -1])
        return outputs


def small_convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12, 3)),
    )


def buffered() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), Averaging(), nn.ReLU(), nn.Linear(6, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mlp": (lambda: MLP(5, (4,), 3), {}),
    "ramp": (lambda: MLP(5, (4,), 3), {"sparsity": 40.0}),
    "chunked": (
        lambda: MLP(5, (4,), 3),
        {"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 2},
    ),
    "norm-per-task": (mixed_net, {"dropout": "off"}),
    "norm-batch": (mixed_net, {"bn": "batch", "dropout": "off"}),
    "norm-frozen": (mixed_net, {"bn": "frozen", "dropout": "off"}),
    "norm-shared": (mixed_net, {"shared": "1.*", "dropout": "off"}),
    "convolutions": (small_convolutions, {"per_task": "5.bias"}),
    "buffer-and-shared": (buffered, {"shared": ["1.shift", "0.bias"]}),
    "recurrent-shared": (Recurrent, {"shared": "rnn.weight_hh_l0"}),
    "weight-norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)),
        {},
    ),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.05),
    "in-backward": lambda p: FactoredAdam(p, lr=0.05, step_in_backward=True),
}


def made(name: str = "mlp", **options: Any) -> HyperMask:
    torch.manual_seed(4)
    network, own = NETWORKS[name]
    with pytest.warns(match="shared") if name == "weight-norm" else nullcontext():
        learner = make(network(), tasks=0, **{"sparsity": 20.0, "beta": 1.0, **own, **options})
    for _ in range(4):
        learner.add_task(classes=range(3))
    return learner


def learn(learner: HyperMask, optimizer: Any, *tasks: int, steps: int = 3) -> None:
    for task in tasks:
        learner.train().begin_task(task, steps=steps)
        for _ in range(steps):
            step(learner, optimizer, task)
        learner.end_task()


def step(learner: HyperMask, optimizer: Any, task: int) -> Any:
    optimizer.zero_grad()
    losses = learner.losses(*batch(learner), task, optimizer=optimizer)
    losses.total.backward()
    optimizer.step()
    return losses


@torch.no_grad()
def bits_of(learner: HyperMask) -> Bits:
    """All ways to the outputs of tasks 0 and 1, in evaluation."""
    learner.eval()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 1, 1, 0, 0, 1])
    factors = torch.tensor([0.25, 0.75] + [0.0] * (len(learner.tasks) - 2))
    found: Bits = {"mixed": learner(x, ids), "all": learner.all_outputs(x, [1, 0])}
    with learner.blended(factors) as net:
        found["blended"] = net(x)
    for task in (0, 1):
        found[f"single {task}"] = learner(x, task)
        found[f"features {task}"] = learner.features(x, task)
        found[f"exported {task}"] = export_subnet(learner, task)(x)
        found |= {f"{k} {task}": v for k, v in learner.task_weights(task).items()}
    return found


def assert_same(found: Bits, expected: Bits) -> None:
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different


each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@each_optimizer
@pytest.mark.parametrize("earlier", ["frozen", "regularized"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_keep_their_bits(name: str, earlier: str, optimizer: str) -> None:
    """One optimizer for all tasks, with what it has of the earlier ones; the control changes."""
    learner = made(name, earlier=earlier)
    chosen = OPTIMIZERS[optimizer](learner.parameters())
    if name == "chunked" and optimizer == "in-backward":
        chosen = OPTIMIZERS["adam"](learner.parameters())
    learn(learner, chosen, 0, 1)
    before = bits_of(learner)
    learn(learner, chosen, 2, 3)
    after = bits_of(learner)
    if earlier == "frozen":
        assert learner.frozen == (0, 1, 2, 3)
        assert_same(after, before)
    else:
        assert learner.frozen == ()
        for way in ("mixed", "all", "single 0", "exported 1", "blended"):
            assert not torch.equal(after[way], before[way])


@pytest.mark.parametrize("name", NETWORKS)
def test_freezing_changes_no_output(name: str) -> None:
    learner = made(name)
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    learner.freeze_masks()
    after = bits_of(learner)
    blended = before.pop("blended")
    assert_same(after, before)
    torch.testing.assert_close(after["blended"], blended)
    assert learner.frozen == (0, 1)


def test_nothing_that_changes_is_read() -> None:
    """Whatever happens to the learner's parameters and statistics."""
    learner = made("norm-per-task", earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    perturb(learner)
    with torch.no_grad():
        for buffer in learner.norms.buffers():
            buffer.add_(1)
    learner.sparsity = 60.0
    after = bits_of(learner)
    assert_same(after, before)


def test_layers_form_no_masks_of_frozen_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = made()
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    formed: list[Any] = []

    def at_once(network: Any, logits: Any, x: Tensor, ids: Any, *_: Any, **__: Any) -> None:
        formed.append(list(ids))

    monkeypatch.setattr("hypermask_fast.methods.hypermask.masked.outputs_at_once", at_once)
    bits_of(learner)
    assert [0, 1] in formed
    assert [0] in formed
    learner.freeze_masks()
    formed.clear()
    bits_of(learner)
    assert not formed
    learner(torch.randn(2, 5), torch.tensor([0, 2]))
    assert formed == [[2]]


def test_forwards_in_training_mode_move_nothing_that_is_kept() -> None:
    for name in ("norm-per-task", "buffer-and-shared"):
        learner = made(name, earlier="frozen")
        learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
        before = bits_of(learner)
        own = copy.deepcopy(moving_of(learner))
        learner.train()(batch(learner)[0], 0)
        assert_same(moving_of(learner), own)
        assert_same(bits_of(learner), before)


def test_steps_regularize_no_frozen_task() -> None:
    learner = made()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    learner.freeze_masks()
    learner.train().begin_task(2, steps=2)
    assert learner._kept.earlier == 0
    assert learner._kept.logits is None
    assert learner._previous is None
    losses = [step(learner, optimizer, 2) for _ in range(2)]
    assert all(each.output_reg == each.weight_reg == 0 for each in losses)
    # The ramp of the sparsity is the first task's alone.
    assert learner.step_sparsity == learner.sparsity
    learner.end_task()
    # A task that is not frozen is protected by the next.
    learner.begin_task(3)
    assert learner._kept._host_ids == [3, 2]
    losses = [step(learner, optimizer, 3) for _ in range(2)]
    assert losses[1].output_reg > 0
    assert losses[1].weight_reg > 0


def test_masks_are_those_of_what_is_kept() -> None:
    learner = made(earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    masks, weights = learner.masks(0), learner.task_weights(0)
    assert masks.keys() == weights.keys() - {learner.exempt}
    for name, mask in masks.items():
        assert torch.equal(mask * weights[name], weights[name])
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert masks["hidden.0.weight"].mean() == 0.8
    assert_same(learner.task_weights(0, sparsity=20.0), weights)
    for read in (learner.masks, learner.task_weights):
        with pytest.raises(ValueError, match="task 0 is frozen, with the masks multiplied"):
            read(0, sparsity=50.0)


def test_a_copy_is_not_frozen_and_other_tasks_come_and_go() -> None:
    learner = made(earlier="frozen", capacity=4)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    copied = learner.copy_task(0, "copy")
    assert learner.capacity == 8
    learner.rename_task(0, "first")
    added = learner.add_task()
    learner.remove_task(added)
    assert learner.frozen == (0, 1)
    learn(learner, optimizer, copied)
    assert learner.frozen == (0, 1, copied)
    before.pop("blended")
    assert_same(bits_of(learner), before)


def test_an_abandoned_task_leaves_frozen_ones_alone() -> None:
    learner = made(earlier="frozen")
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    kept = sum(v.nbytes for v in weights_of(learner).values())
    kept -= sum(v.nbytes for v in moving_of(learner).values())
    assert kept == 2 * sum(w.nbytes for w in learner.net.parameters())
    learner.begin_task(2)
    assert not any(name.startswith("frozen") for name in learner._start or {})
    step(learner, optimizer, 2)
    learner.abandon_task()
    assert_same(bits_of(learner), before)


def states(tmp_path: Path) -> Iterator[tuple[str, Callable[[HyperMask, HyperMask], HyperMask]]]:
    def by_state_dict(learner: HyperMask, twin: HyperMask) -> HyperMask:
        torch.save(learner.state_dict(), tmp_path / "state")
        twin.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        return twin

    def in_a_module(learner: HyperMask, twin: HyperMask) -> HyperMask:
        nn.Sequential(twin).load_state_dict(nn.Sequential(learner).state_dict())
        return twin

    def by_file(learner: HyperMask, twin: HyperMask) -> HyperMask:
        hmf.save(learner, tmp_path / "file")
        loaded = hmf.load(tmp_path / "file", twin.net)
        assert isinstance(loaded, HyperMask)
        return loaded

    yield "state_dict", by_state_dict
    yield "in a module", in_a_module
    yield "file", by_file
    yield "deepcopy", lambda learner, twin: copy.deepcopy(learner)


@pytest.mark.filterwarnings("ignore:.*what all tasks share:UserWarning")
@pytest.mark.parametrize("name", ["mlp", "norm-per-task", "buffer-and-shared", "weight-norm"])
def test_states_hold_frozen_tasks(name: str, tmp_path: Path) -> None:
    learner = made(name, earlier="frozen")
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    learn(learner, optimizer, 2)
    ends = []
    for way, copied in states(tmp_path):
        twin = made(name, earlier="frozen")
        if way == "file":
            hmf.unconvert(twin.net)
        twin = copied(learner, twin)
        assert twin.frozen == (0, 1, 2), way
        assert_same(bits_of(twin), before)
        torch.manual_seed(6)
        learn(twin, torch.optim.SGD(twin.parameters(), lr=0.05), 3)
        ends.append(weights_of(twin))
        assert_same(bits_of(twin), before)
    for end in ends[1:]:
        assert_same(end, ends[0])


def test_a_state_without_frozen_tasks_is_as_before() -> None:
    learner = made()
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    earlier = copy.deepcopy(learner.state_dict())
    assert not any(key.startswith("frozen") for key in earlier)
    assert "frozen" not in learner.task_state()[1]
    learner.freeze_masks()
    learner.load_state_dict(earlier)
    assert learner.frozen == ()


@pytest.mark.parametrize("what", ["lacks", "shape", "not learned", "no ids"])
def test_states_that_do_not_fit_are_refused(what: str) -> None:
    learner = made(earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    state, (tensors, task_state) = dict(learner.state_dict()), learner.task_state()
    if what == "lacks":
        del state["frozen_tasks.1.0"]
    elif what == "shape":
        state["frozen_tasks.1.0"] = torch.zeros(2, 2)
    else:
        task_state["frozen"] = [3] if what == "not learned" else "all"
        with pytest.raises(CheckpointError, match="give what task_state"):
            learner.load_task_state(tensors, task_state)
    if what in ("lacks", "shape"):
        with pytest.raises(CheckpointError, match=r"frozen_tasks\.1\.0"):
            learner.load_state_dict(state)
    assert_same(bits_of(learner), before)


def test_resume_within_a_later_task_is_bit_identical() -> None:
    scenario = split(make_dataset(), 2, validation=8)

    def trainer() -> Trainer:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), MLP(16, (6,), 2))
        learner = make(net, tasks=0, earlier="frozen", sparsity=20.0)
        return Trainer(learner, lr=0.01, batch_size=4, steps=4, seed=0, selection="best")

    whole, states = trainer(), []

    def note(one: Trainer) -> None:
        if one.learner.current == 2 and one.step == 2:
            tensors, state = one.state()
            states.append(({k: v.clone() for k, v in tensors.items()}, state))

    whole.hooks.append(note)
    for task in scenario:
        whole.fit(task)
    assert whole.learner.frozen == (0, 1, 2)
    resumed = trainer()
    for task in scenario:
        resumed.add(task)
    resumed.load_state(*states[0])
    assert resumed.learner.frozen == (0, 1)
    resumed.fit(scenario[2])
    assert_same(weights_of(resumed.learner), weights_of(whole.learner))
    # A state that is refused takes nothing.
    tensors, state = states[0]
    del tensors["learner/frozen_tasks.1.0"]
    with pytest.raises(CheckpointError):
        resumed.load_state(tensors, state)
    assert_same(weights_of(resumed.learner), weights_of(whole.learner))


def test_what_cannot_be_frozen_or_begun_is_refused() -> None:
    learner = made()
    learner.freeze_masks()
    assert learner.frozen == ()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0)
    learner.begin_task(1)
    with pytest.raises(RuntimeError, match=r"task 1 is being learned; call end_task\(\)"):
        learner.freeze_masks()
    learner.end_task()
    learner.freeze_masks()
    kept = list(learner.frozen_tasks.buffers())
    learner.freeze_masks()
    assert all(a is b for a, b in zip(kept, learner.frozen_tasks.buffers(), strict=True))
    with pytest.raises(RuntimeError, match=r"task 0 is frozen.*copy_task\(0\)"):
        learner.begin_task(0)
    assert "frozen tasks: 2; 0.0 MiB of masked weights for each" in learner.report()
    untrained = made(earlier="frozen")
    untrained.begin_task(0)
    with pytest.raises(RuntimeError, match="still unknown; run learner"):
        untrained.end_task()
    assert untrained.current == 0


def test_kept_weights_move_and_are_told_to_plans() -> None:
    learner = made("norm-per-task", earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    x = torch.randn(4, 5)
    with torch.no_grad():
        before = learner.eval()(x, 0)
        found = learner.double()(x.double(), 0)
    torch.testing.assert_close(found, before.double(), rtol=1e-5, atol=1e-5)
    parts = learner.memory_parts()["weights of frozen tasks"]
    # Weights; scale, shift, mean and variance of the norm.
    assert sum(p.numel() for p in parts) == 5 * 6 + 6 + 6 * 3 + 3 + 4 * 6
    assert {p.dtype for p in parts} == {torch.float64}
