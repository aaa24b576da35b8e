"""Networks of every kind under masks, held against PyTorch's functional call of the plain network.

The truth knows nothing of the conversion: masks are multiplied into the weights of a network that
was never converted, in float64, and it is called with them.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hypermask_fast import HyperMask, export_subnet, unconvert
from tests.support.conversion_cases import snapshot
from tests.support.hypermask_cases import perturb
from tests.support.network_cases import NETWORKS, Repeated

TASKS = 3
CLOSE = {"rtol": 0, "atol": 1e-12}
each_network = pytest.mark.parametrize("name", NETWORKS)


def networks(name: str, copies: int = 2) -> list[nn.Module]:
    """Equal networks in float64; norms have statistics and parameters of their own."""
    torch.manual_seed(0)
    net = NETWORKS[name][0]().double()
    with torch.no_grad():
        for key, value in (*net.named_parameters(), *net.named_buffers()):
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value) if "running" in key else 0
                value += 0.1 * torch.randn_like(value) if "running" not in key else 0
    return [copy.deepcopy(net) for _ in range(copies)]


def inputs(name: str) -> Tensor:
    torch.manual_seed(1)
    return NETWORKS[name][1]()


def learner_over(net: nn.Module, **options: object) -> HyperMask:
    torch.manual_seed(2)
    learner = HyperMask(net, embedding_dim=3, hidden=(4,), capacity=4, sparsity=30.0, **options)
    for _ in range(TASKS):
        learner.add_task()
    for part in (learner.hypernetwork, learner.norms):
        perturb(part)
    return learner


def tables_of(learner: HyperMask) -> dict[str, Tensor]:
    """Parameters and statistics of normalisation by name, a row a task."""
    tables = zip(learner.norms._tabled, learner.norms.tables, strict=True)
    return {
        f"{name}.{key}": value
        for name, table in tables
        for key, value in (*table.named_parameters(), *table.named_buffers())
    }


def weights_by_hand(learner: HyperMask, net: nn.Module, x: Tensor, task: int) -> dict[str, Tensor]:
    """The plain network's parameters times the learner's masks, and the task's normalisation."""
    with torch.no_grad():
        learner(x, task)  # finds the bias that has no mask
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    weights |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    for name, mask in learner.masks(task).items():
        weights[name] = weights[name] * mask
    return weights | {name: rows[task] for name, rows in tables_of(learner).items()}


@each_network
def test_a_forward_is_the_plain_networks_with_masked_weights(name: str) -> None:
    net, plain = networks(name)
    before, state = snapshot(net), {k: v.clone() for k, v in net.state_dict().items()}
    x = inputs(name)
    with torch.no_grad():
        own = net.eval()(x)
    net.train()
    learner = learner_over(net)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    learner.eval()
    with torch.no_grad():
        assert torch.equal(net(x), own)
    for task in range(TASKS):
        weights = weights_by_hand(learner, plain, x, task)
        truth = functional_call(plain.eval(), weights, (x,))
        assert not torch.allclose(truth, own)
        torch.testing.assert_close(learner(x, task), truth, **CLOSE)
        with torch.no_grad():
            torch.testing.assert_close(learner(x, task), truth, **CLOSE)
            torch.testing.assert_close(export_subnet(learner, task)(x), truth, **CLOSE)
            torch.testing.assert_close(learner.all_outputs(x)[task], truth, **CLOSE)
    unmasked = {
        "out.bias",
        "fc.bias",
        "head.bias",
        "heads.head.bias",
        "classifier.2.bias",
        "pair.bias",
    }
    names = {n for n, _ in plain.named_parameters()} - tables_of(learner).keys()
    assert names - learner.masks(0).keys() <= unmasked
    unconvert(net.train())
    assert snapshot(net) == before
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@each_network
def test_gradients_of_a_step_are_those_of_the_plain_network(name: str) -> None:
    net, plain = networks(name)
    learner = learner_over(net)
    x, y = inputs(name), torch.arange(3)
    learner(x, 0)
    learner.begin_task(0)
    losses = learner.losses(x, y, 0)
    losses.total.backward()
    grads = {n: p.grad for n, p in net.named_parameters()}
    grads |= {n: row.grad[0] for n, row in tables_of(learner).items() if row.grad is not None}
    masks = {n: mask.detach() for n, mask in learner.masks(0).items()}
    own = {**dict(net.named_parameters()), **{n: t[0] for n, t in tables_of(learner).items()}}
    leaves = {n: own[n].detach().clone().requires_grad_() for n, _ in plain.named_parameters()}
    weights = {n: leaf * masks.get(n, 1) for n, leaf in leaves.items()}
    loss = nn.functional.cross_entropy(functional_call(plain, weights, (x,)), y)
    torch.testing.assert_close(losses.task, loss, **CLOSE)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for n, grad in zip(leaves, found, strict=True):
        mine = grads.get(n)
        expected = torch.zeros_like(leaves[n]) if grad is None else grad
        mine = torch.zeros_like(leaves[n]) if mine is None else mine
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12, msg=n)


@each_network
def test_threads_copies_and_pickles(name: str) -> None:
    (net,) = networks(name, 1)
    learner = learner_over(net).eval()
    x = inputs(name)
    with torch.no_grad():
        expected = [learner(x, task) for task in range(TASKS)]

        def wrong(task: int) -> int:
            with torch.no_grad():
                return sum(not torch.equal(learner(x, task), expected[task]) for _ in range(10))

        with ThreadPoolExecutor(TASKS) as pool:
            assert list(pool.map(wrong, range(TASKS))) == [0] * TASKS
        for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
            assert torch.equal(twin(x, 1), expected[1])
        with learner.activated(2) as running:
            alone = copy.deepcopy(running)
        assert torch.equal(alone(x), expected[2])
        unconvert(alone)
        assert {n: type(m) for n, m in alone.named_modules()} == {
            n: type(m) for n, m in networks(name, 1)[0].named_modules()
        }


@pytest.mark.parametrize("how", [False, True])
def test_what_a_checkpoint_repeats_reads_the_same_weights(how: bool) -> None:
    torch.manual_seed(0)
    nets = [Repeated(None).double()]
    nets.append(copy.deepcopy(nets[0]))
    nets[1].how = how
    x, y = inputs("repeated"), torch.arange(3)
    grads = []
    for net in nets:
        learner = learner_over(net)
        learner(x, 0)
        learner.begin_task(1)
        if net.how:
            with pytest.raises(RuntimeError, match="ran without gradients"):
                learner.losses(x, y, 1)
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                learner(x.clone().requires_grad_(), 1).sum().backward()
            return
        losses = learner.losses(x, y, 1)
        with torch.no_grad():
            learner(x, 2)  # What ran in between is not taken for what ran first.
        losses.total.backward()
        grads.append({n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for n, grad in grads[0].items():
        torch.testing.assert_close(grads[1][n], grad, **CLOSE, msg=n)


def test_a_tied_weight_has_one_mask() -> None:
    (net,) = networks("transformer-tied", 1)
    learner = learner_over(net).eval()
    x = inputs("transformer-tied")
    learner(x, 0)
    names = [entry["name"] for entry in learner.manifest()]
    assert "words.weight" in names
    assert "out.weight" not in names
    assert "words.weight" in learner.task_weights(0)
    assert "masked (also out.weight)" in learner.report()
    exported = export_subnet(learner, 1)
    assert exported.get_parameter("out.weight") is exported.get_parameter("words.weight")


def test_a_layer_in_two_places_is_masked_in_both() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer).double()
    plain = copy.deepcopy(net)
    learner = learner_over(net).eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    learner(x, 0)
    weights = {n: p * learner.masks(0).get(n, 1) for n, p in plain.named_parameters()}
    torch.testing.assert_close(learner(x, 0), functional_call(plain, weights, (x,)), **CLOSE)


def test_the_last_layer_is_found_where_others_read_parameters_later() -> None:
    (net,) = networks("scaled", 1)
    with pytest.warns(
        UserWarning, match=r"did not run in a forward.*exclude=\['shifts.1', 'gains.low'"
    ):
        learner = learner_over(net, example_input=torch.ones(3, 5, dtype=torch.float64))
    assert learner.exempt == "out.bias"


def test_nothing_warns_where_all_parameters_are_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("vit", "swin", "transformer", "attention", "lstm"):
            learner_over(networks(name, 1)[0]).eval()(inputs(name), 0)


def test_a_users_names_are_not_hidden() -> None:
    class Own(nn.Module):
        """Attributes and methods with names that this package uses for its layers."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 5))
            self.out = nn.Linear(5, 3)
            self.active, self.mask_source, self.frozen, self.plain = 2.0, "x", True, 1

        def read(self, x: Tensor) -> Tensor:
            return x @ self.w * self.active

        def stand_in(self, x: Tensor) -> Tensor:
            return self.out(self.read(x))

        here = ran = stand_in

        def forward(self, x: Tensor) -> Tensor:
            return self.here(x)

    net = Own().eval()
    before = snapshot(net)
    learner = learner_over(net).eval()
    x = torch.randn(3, 5)
    copied = copy.deepcopy(learner)
    assert torch.equal(copied(x, 1), learner(x, 1))
    assert torch.equal(export_subnet(learner, 1)(x), learner(x, 1))
    unconvert(net)
    assert snapshot(net) == before
    assert net.active == 2.0
