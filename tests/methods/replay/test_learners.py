"""HNET+TIR and HNET+R as learners: their losses, states, and what they refuse."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast import export_subnet
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.inference.tir import TIR
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hnet_r.distillation import growing_loss
from hypermask_fast.methods.hnet_r.learner import HNETR
from hypermask_fast.methods.hnet_tir.learner import HNETTIR
from hypermask_fast.methods.replay.learner import ReplayLearner
from hypermask_fast.methods.sharing import Share
from hypermask_fast.networks import MLP
from tests.support.hnet_cases import make as make_hnet
from tests.support.hnet_cases import train as train_hnet
from tests.support.replay_cases import SHAPE, batch, make, stepper, train

METHODS = [pytest.param(HNETTIR, id="tir"), pytest.param(HNETR, id="r")]
HEADS = ["multi", "growing", "shared"]


def snapshot(learner: ReplayLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights_of(learner).items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(-(targets * np.log(softmax(logits))).sum(1).mean())


@pytest.mark.parametrize("heads", HEADS)
def test_the_loss_of_hnet_r_is_half_the_batch_and_half_distillation(heads: str) -> None:
    """Against numpy, in the third task: the copy is of its start, the network of the step."""
    learner = make(HNETR, dtype=torch.float64, task_heads=heads)
    for task in range(2):
        train(learner, task)
    learner.train()
    learner.begin_task(2)
    step = stepper(learner)
    before = {k: v.clone() for k, v in learner.net.state_dict().items()}
    step(*batch(learner), 2)
    x, y = batch(learner)
    replayed = learner.replay.sample(8, 2, 2)
    assert replayed is not None
    with torch.no_grad():
        now = learner.net(x).numpy(), learner.net(replayed.x).numpy()
        other = MLP(6, (5,), 6).double()
        other.load_state_dict(before)
        said = other(replayed.x).numpy()
    found = step(x, y, 2)
    temperature, start = 2.0, 0 if heads == "shared" else 4
    own = now[0] if heads != "multi" else now[0][:, 4:]
    # With a shared head, outputs that a task of two classes has not are left out.
    own = own[:, :2] if heads == "shared" else own
    label = y.numpy() + (start if heads == "growing" else 0)
    task_loss = cross_entropy(own, np.eye(own.shape[1])[label])
    if heads == "growing":
        said[:, 4:] = 0
    parts = []
    for place in range(2):
        rows = slice(4 * place, 4 * place + 4)
        outputs = slice(2 * place, 2 * place + 2) if heads == "multi" else slice(None)
        target = softmax(said[rows, outputs] / temperature)
        parts.append(cross_entropy(now[1][rows, outputs] / temperature, target) * temperature**2)
    assert float(found.task) == pytest.approx(task_loss, rel=1e-10)
    assert float(found.distillation) == pytest.approx(np.mean(parts), rel=1e-10)
    mixed = 0.5 * task_loss + 0.5 * np.mean(parts)
    rest = float(found.vae + learner.replay.beta * found.replay_reg)
    assert float(found.total) == pytest.approx(mixed + rest, rel=1e-10)


def test_a_single_earlier_class_is_a_hard_target() -> None:
    logits, said = torch.randn(2, 5, 3, dtype=torch.float64)
    found = growing_loss(logits, said, [slice(1, 2)], 2.0)
    expected = cross_entropy(logits.numpy(), np.eye(3)[[1] * 5])
    assert float(found) == pytest.approx(expected, rel=1e-12)
    soft = growing_loss(logits, said, [slice(0, 1), slice(1, 2)], 2.0)
    kept = np.concatenate((said[:, :2].numpy(), np.zeros((5, 1))), 1)
    expected = 4 * cross_entropy(logits.numpy() / 2, softmax(kept / 2))
    assert float(soft) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("heads", HEADS)
def test_processes_divide_replayed_images_and_some_have_none(heads: str) -> None:
    learner = make(HNETR, dtype=torch.float64, task_heads=heads)
    for task in range(2):
        train(learner, task)
    learner.train()
    learner.begin_task(2)
    x, y = batch(learner)
    shapes: list[int] = []
    learner.net.register_forward_pre_hook(lambda _, args: shapes.append(len(args[0])))
    _, whole, _ = learner._of_batch(x, y, 2, 1)
    assert shapes == [8, 8 + 8]  # by the copy, and in the step
    shares = [slice(i, i + 1) for i in range(7)] + [slice(7, 8)]
    found = 0.0
    for rows in shares:
        learner.share = Share(rows, 8, list)
        _, part, _ = learner._of_batch(x[rows], y[rows], 2, 1)
        found += learner.share.weight * float(part.detach())
    # Four images of each task, of which every other process has one.
    assert sorted(shapes[2:]) == [1] * 4 + [2] * 4 + [3] * 4
    assert found == pytest.approx(float(whole.detach()), rel=1e-12)


def test_the_loss_of_the_task_classifier() -> None:
    learner = make(HNETTIR, dtype=torch.float64)
    first = train(learner, 0)
    assert all(float(each.task_inference) == 0 for each in first)
    before = snapshot(learner)
    train(learner, 1, steps=0)
    assert_equal(before, snapshot(learner))
    learner.train()
    learner.begin_task(2)
    x, y = batch(learner)
    replayed = learner.replay.sample(8, 2, 1)
    assert replayed is not None
    assert isinstance(learner, HNETTIR)
    now, of_earlier = (learner.task_logits(rows, [2, 0, 1]).numpy() for rows in (x, replayed.x))
    found = stepper(learner)(x, y, 2)
    current = cross_entropy(now, np.eye(3)[[0] * 8])
    earlier = cross_entropy(of_earlier, np.eye(3)[[1] * 4 + [2] * 4])
    assert float(found.task_inference) == pytest.approx((current + earlier) / 2, rel=1e-10)
    untrained = learner.task_classifier.classifier.weight[3]
    assert torch.equal(untrained, before["task_classifier.classifier.weight"][3])


def test_processes_divide_what_the_task_classifier_learns_from() -> None:
    learner = make(HNETTIR, dtype=torch.float64)
    for task in range(2):
        train(learner, task)
    learner.begin_task(2)
    x, y = batch(learner)

    def loss(share: Share | None) -> float:
        own = copy.deepcopy(learner)
        own.share = share
        rows = slice(0, 8) if share is None else share.rows
        return float(stepper(own)(x[rows], y[rows], 2).task_inference)

    # Four images of each of two tasks, of which every other process has one.
    parts = [loss(Share(slice(i, i + 1), 8, list)) for i in range(8)]
    assert sum(parts) / 8 == pytest.approx(loss(None), rel=1e-12)


@pytest.mark.parametrize("lookahead", [True, False])
def test_hnet_learns_as_without_the_classifier_of_tasks(lookahead: bool) -> None:
    torch.manual_seed(0)
    net = MLP(6, (4,), 6)
    alone = make_hnet(net, lookahead=lookahead)
    torch.manual_seed(0)
    both = HNETTIR(
        MLP(6, (4,), 6),
        **{"input_shape": (6,), "lookahead": lookahead, "task_heads": "multi", "capacity": 5},
        **{"embedding_dim": 3, "hidden": (6, 5), "chunk_size": 17, "chunk_embedding_dim": 2},
        **{"encoder_hidden": (4,), "decoder_hidden": (4,), "latent_dim": 2},
    )
    for task in range(3):
        both.add_task(classes=(2 * task, 2 * task + 1))
    for task in range(2):
        batches = [(torch.rand(8, 6), torch.randint(2, (8,))) for _ in range(3)]
        for each in (alone, both):
            each.train()
            each.begin_task(task)
            step = stepper(each)  # type: ignore[arg-type]
            for x, y in batches:
                step(x, y, task)
            each.end_task()
    left, right = weights_of(alone), weights_of(both)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heads", HEADS)
def test_an_exported_network_gives_the_tasks_outputs(
    method: type[ReplayLearner], heads: str
) -> None:
    learner = make(method, task_heads=heads)
    for task in range(2):
        train(learner, task)
    learner.eval()
    x, _ = batch(learner)
    for task in range(3):
        plain = export_subnet(learner, task)(x)
        found = learner(x, task)
        assert torch.allclose(plain[:, :2], found[:, :2], rtol=0, atol=1e-6)
        assert plain.shape[1] == (6 if heads == "shared" else 2)
        with learner.activated(task) as net:
            assert torch.allclose(net(x)[:, :2], found[:, :2], rtol=0, atol=1e-6)
        assert torch.allclose(learner.all_outputs(x)[task], found, rtol=0, atol=1e-6)
        assert learner.features(x, task).shape == (8, 5)
    ids = torch.tensor([0, 2, 1, 1, 0, 2, 0, 1])
    rows = torch.stack([learner(x, int(i))[row] for row, i in enumerate(ids)])
    assert torch.allclose(learner(x, ids), rows, rtol=0, atol=1e-6)
    with learner.blended(torch.tensor([1.0, 0.0, 0.0])) as net:
        assert torch.allclose(net(x)[:, :2], learner(x, 0)[:, :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_is_abandoned_leaves_nothing(method: type[ReplayLearner]) -> None:
    learner = make(method)
    train(learner, 0)
    before = snapshot(learner)
    learner.begin_task(1)
    stepper(learner)(*batch(learner), 1)
    assert learner.steps_taken == 1
    learner.abandon_task()
    assert_equal(before, snapshot(learner))
    assert not learner.replay.kept.held_tensors()
    assert learner.replay.earlier == ()
    assert learner.steps_taken == 0
    assert "teacher" not in learner.task_state()[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_holds_what_later_tasks_need(method: type[ReplayLearner]) -> None:
    torch.manual_seed(3)
    learner = make(method, capacity=2, tasks=2, conditions=0)
    for task in range(2):
        train(learner, task)
    torch.manual_seed(4)
    other = make(method, capacity=2, tasks=2, conditions=0)
    other.load_state_dict(learner.state_dict())
    assert tuple(other.learned) == (0, 1)
    found = []
    for each in (learner, other):
        torch.manual_seed(5)
        each.train()
        each.begin_task(0)
        stepper(each)(*batch(each), 0)
        each.end_task()
        found.append(snapshot(each))
    assert_equal(*found)
    with pytest.raises(CheckpointError):
        other.load_state_dict({k: v for k, v in learner.state_dict().items() if "replay" not in k})


@pytest.mark.parametrize("method", METHODS)
def test_tables_grow_with_the_tasks(method: type[ReplayLearner]) -> None:
    learner = make(method, capacity=2, tasks=2, conditions=0, task_heads="shared")
    for task in range(2):
        train(learner, task)
    x, _ = batch(learner)
    before = learner.eval().predict(x)
    learner.add_task(classes=(4, 5))
    assert learner.capacity == 4
    after = learner.predict(x)
    assert torch.equal(before.classes, after.classes)
    train(learner, 2)
    assert learner.predict(x).competing == (0, 1, 2)
    smaller = make(method, capacity=2, tasks=2, conditions=0, task_heads="shared")
    smaller.load_state_dict(learner.state_dict())
    assert torch.equal(smaller.eval().predict(x).classes, learner.eval().predict(x).classes)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_continues_from_its_state(method: type[ReplayLearner]) -> None:
    """Loaded within a task: the kept decoders, the copy, the step and the seed of the noise."""
    torch.manual_seed(0)
    learner = make(method)
    train(learner, 0)
    learner.train()
    learner.begin_task(1)
    step = stepper(learner)
    step(*batch(learner), 1)
    tensors, state = learner.task_state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    weights = {name: value.clone() for name, value in learner.state_dict().items()}
    torch.manual_seed(9)
    other = make(method)
    other.load_task_state(tensors, json.loads(json.dumps(state)))
    other.load_state_dict(weights)
    other.train()
    again = stepper(other)
    for name, optimizer in step.optimizers.items():
        again.optimizers[name].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    x, y = batch(learner)
    left, right = step(x, y, 1), again(x, y, 1)
    assert torch.equal(left.total, right.total)
    assert_equal(snapshot(learner), snapshot(other))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda x: 2 * x + 1, ValueError, r"reach from .* in \[0, 1\]", id="above"),
        pytest.param(lambda x: x - 1, ValueError, r"reach from -", id="below"),
        pytest.param(lambda x: x * torch.nan, ValueError, "reach from nan", id="nan"),
        pytest.param(lambda x: x.flatten(1), ValueError, r"give images \(8, 1, 2, 3\)", id="shape"),
        pytest.param(lambda x: x.long(), ValueError, "int64", id="dtype"),
    ],
)
def test_images_that_cannot_be_replayed_are_refused(
    method: type[ReplayLearner], change: Any, error: type[Exception], message: str
) -> None:
    learner = make(method)
    learner.begin_task(0)
    step, (x, y) = stepper(learner), batch(learner)
    before = snapshot(learner)
    with pytest.raises(error, match=message):
        step(change(x), y, 0)
    assert_equal(before, snapshot(learner))


@pytest.mark.parametrize("method", METHODS)
def test_what_else_is_refused(method: type[ReplayLearner]) -> None:
    learner = make(method)
    x, y = batch(learner)
    with pytest.raises(RuntimeError, match="call begin_task"):
        learner.step(x, y, 0, {})
    learner.begin_task(0)
    with pytest.raises(RuntimeError, match=r"call step\(x, y, task, optimizers\)"):
        learner.losses(x, y, 0)
    optimizers = dict(stepper(learner).optimizers)
    del optimizers["replay"]
    with pytest.raises(ConfigError, match=r"give \[.*'replay', 'replay_embedding'\]"):
        learner.step(x, y, 0, optimizers)
    step = stepper(learner)
    sgd = torch.optim.SGD(learner.replay.encoder.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="look-ahead of a SGD is not known"):
        learner.step(x, y, 0, {**step.optimizers, "replay": sgd})
    learner.abandon_task(restore=False)
    learner.add_task(classes=(0, 1))
    with pytest.raises(ValueError, match="task number 5 and conditions=4"):
        learner.add_task(classes=(0, 1))


def test_a_network_without_a_plain_output_layer_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.LayerNorm(4))
    with pytest.raises(ConfigError, match="what runs last in the Sequential is '2'"):
        HNETR(net, input_shape=SHAPE)
    with pytest.raises(ConfigError, match="does not run through MLP"):
        HNETR(MLP(6, (5,), 2), input_shape=(7,))
    with pytest.raises(ConfigError, match="Flatten without parameters"):
        HNETR(torch.nn.Flatten(), input_shape=(7,))


def test_tasks_are_inferred_by_the_classifier_among_those_that_compete() -> None:
    learner = make(HNETTIR)
    assert isinstance(learner, HNETTIR)
    for task in range(3):
        train(learner, task)
    x, _ = batch(learner)
    found = learner.eval().predict(x, tasks=[2, 0])
    logits = learner.task_logits(x, [0, 2]).double()
    assert found.competing == (0, 2)
    assert torch.allclose(found.scores, logits.log_softmax(1).t())
    assert found.tasks.tolist() == [(0, 2)[place] for place in logits.argmax(1).tolist()]
    for row, task in enumerate(found.tasks.tolist()):
        place = int(learner(x[row : row + 1], task).argmax())
        assert int(found.classes[row]) == 2 * task + place
    assert learner.predict(x[:0]).tasks.shape == (0,)
    other = make_hnet()
    train_hnet(other, 0)
    with pytest.raises(ConfigError, match="needs a classifier of tasks and HNET has none"):
        other.predict(torch.randn(2, 5), "tir")
    assert repr(TIR()) == "TIR()"


def test_one_softmax_over_all_outputs_infers_task_and_class() -> None:
    learner = make(HNETR, task_heads="growing")
    for task in range(3):
        train(learner, task)
    x, _ = batch(learner)
    found = learner.eval().predict(x)
    classes = learner.net(x).argmax(1)
    assert torch.equal(found.classes, classes)
    assert torch.equal(found.tasks, classes // 2)
