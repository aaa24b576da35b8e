"""What stands in for layers' state: by thread, and again where a checkpoint repeats a forward."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypermask_fast import FactoredAdam, HyperMask
from hypermask_fast.layers import stand_ins
from hypermask_fast.layers.masked import MaskedLinear
from hypermask_fast.vision import import_torchvision
from tests.support.hypermask_cases import perturb


class Body(nn.Module):
    """A network whose middle is repeated in the backward pass, in one or two parts."""

    def __init__(self, how: bool | None, parts: int = 1) -> None:
        super().__init__()
        self.how = how
        body = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8)]
        self.parts = nn.ModuleList([nn.Sequential(*body)])
        if parts == 2:
            self.parts.append(nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.5)))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x) if self.how is None else checkpoint(part, x, use_reentrant=self.how)
        return self.out(x)


def learner_over(net: nn.Module, **options: Any) -> HyperMask:
    torch.manual_seed(0)
    learner = HyperMask(net, embedding_dim=3, hidden=(5,), sparsity=30.0, capacity=4, **options)
    learner.double()
    learner._prepare(torch.zeros(2, 6, dtype=torch.float64))
    for _ in range(3):
        learner.add_task(None)
    perturb(learner)
    return learner


def learners(*hows: bool | None, parts: int = 1, **options: Any) -> list[HyperMask]:
    torch.manual_seed(1)
    first = Body(None, parts)
    nets = [copy.deepcopy(first) for _ in hows]
    for net, how in zip(nets, hows, strict=True):
        net.how = how
    return [learner_over(net, **options) for net in nets]


def batch_of(rows: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(rows, 6, dtype=torch.float64), torch.arange(rows) % 3


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class TestThreads:
    def test_each_thread_has_its_own_task(self) -> None:
        (learner,) = learners(None)
        learner.eval()
        x, _ = batch_of()
        with torch.no_grad():
            expected = [learner(x, task) for task in range(2)]
        barrier = threading.Barrier(2)

        def wrong(task: int) -> int:
            barrier.wait()
            with torch.no_grad():
                return sum(not torch.equal(learner(x, task), expected[task]) for _ in range(500))

        assert in_threads(2, wrong) == [0, 0]
        for layer in learner.net.modules():
            assert "active" not in vars(layer)

    def test_a_thread_that_evaluates_does_not_change_what_is_learned(self) -> None:
        ends = []
        x, y = batch_of()
        for evaluates in (False, True):
            (learner,) = learners(None, parts=2, dropout="first_step")
            optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
            done = threading.Event()

            def learn(learner: HyperMask = learner, optimizer: Any = optimizer) -> None:
                torch.manual_seed(3)
                learner.begin_task(1)
                for _ in range(60):
                    optimizer.zero_grad()
                    learner.losses(x, y, 1).total.backward()
                    optimizer.step()
                learner.end_task()

            def evaluate(learner: HyperMask = learner, done: threading.Event = done) -> int:
                rounds = 0
                with torch.no_grad():
                    while not done.is_set() or not rounds:
                        learner(x, 0)
                        rounds += 1
                return rounds

            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(evaluate) if evaluates else None
                try:
                    learn()
                finally:
                    done.set()
                if other is not None:
                    assert other.result() > 0
            ends.append(learner.state_dict())
        for name, value in ends[0].items():
            assert torch.equal(value, ends[1][name]), name

    def test_a_thread_that_did_not_enter_the_context_is_refused(self) -> None:
        (learner,) = learners(None)
        x, _ = batch_of()
        with (
            learner.activated(1) as net,
            ThreadPoolExecutor(1) as pool,
            pytest.raises(RuntimeError, match="in a thread that did not enter a task's context"),
        ):
            pool.submit(net, x).result()

    def test_contexts_left_in_another_order_are_refused(self) -> None:
        (learner,) = learners(None)
        first, second = learner.activated(0), learner.activated(1)
        first.__enter__()
        second.__enter__()
        with pytest.raises(RuntimeError, match="left in another order than entered"):
            first.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="left in another order than entered"):
            second.__exit__(None, None, None)
        assert learner.net.out.here() is None

    def test_a_copy_made_while_another_thread_is_in_a_context_is_plain(self) -> None:
        layer = MaskedLinear(6, 4)
        with layer.masked(torch.randn(4, 6)), ThreadPoolExecutor(1) as pool:
            twin = pool.submit(copy.deepcopy, layer).result()
        assert twin.active is None


class TestCheckpoints:
    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("bn", ["batch", "per_task"])
    def test_gradients_and_statistics_are_those_without(self, parts: int, bn: str) -> None:
        x, y = batch_of()
        found = []
        for learner in learners(None, False, parts=parts, bn=bn):
            learner.begin_task(0)
            learner.end_task()
            learner.begin_task(1)
            torch.manual_seed(5)
            losses = learner.losses(x, y, 1)
            with torch.no_grad():
                learner(x, 2)  # What ran in between is not taken for what ran first.
            losses.total.backward()
            state = {n: v for n, v in learner.state_dict().items() if isinstance(v, Tensor)}
            state |= {
                f"grad {n}": p.grad for n, p in learner.named_parameters() if p.grad is not None
            }
            found.append(state)
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            assert torch.equal(value, found[1][name]), name

    def test_two_forwards_of_one_graph_keep_their_tasks(self) -> None:
        x, _ = batch_of()
        grads = []
        for learner in learners(None, False):
            learner.eval()
            (learner(x, 0).sum() + 2 * learner(x, 1).square().sum()).backward()
            grads.append([p.grad for p in learner.parameters() if p.grad is not None])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("optimizer", ["none", "in backward"])
    def test_reentrant_ones_are_refused_before_anything_changes(self, optimizer: str) -> None:
        x, y = batch_of()
        (learner,) = learners(True)
        learner.begin_task(0)
        chosen = FactoredAdam(learner.parameters(), step_in_backward=optimizer != "none")
        before = {n: v.clone() for n, v in learner.hypernetwork.state_dict().items()}
        for given in (x, x.clone().requires_grad_()):
            with pytest.raises(RuntimeError, match=r"parts.0.0 ran without gradients"):
                learner.losses(given, y, 0, optimizer=chosen)
        logits = learner(x.requires_grad_(), 0)
        with pytest.raises(RuntimeError, match="with use_reentrant=False"):
            logits.sum().backward()
        for name, value in learner.hypernetwork.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_a_layer_masked_by_hand(self) -> None:
        layer, x = MaskedLinear(6, 4), torch.randn(3, 6, requires_grad=True)
        z = torch.randn(4, 6, requires_grad=True)
        grads = []
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
            with layer.masked(z, sparsity=30):
                y = run(x).square().sum()
            grads.append(torch.autograd.grad(y, (x, z, layer.weight)))
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)

    def test_what_stood_in_is_freed_with_the_graph(self) -> None:
        (learner,) = learners(False)
        before = set(stand_ins._repeatable)
        y = learner.eval()(batch_of()[0], 1)
        alive = [weakref.ref(forward) for forward in set(stand_ins._repeatable) - before]
        assert alive
        gc.collect()
        assert any(ref() is not None for ref in alive)
        del y
        gc.collect()  # Checkpoints hold circles of their own.
        assert all(ref() is None for ref in alive)

    def test_densenet_with_memory_efficient_layers(self) -> None:
        import_torchvision()
        from torchvision.models.densenet import DenseNet

        x = torch.randn(2, 3, 32, 32)
        grads = []
        for efficient in (False, True):
            torch.manual_seed(0)
            net = DenseNet(4, (2, 2), 8, num_classes=3, memory_efficient=efficient)
            learner = HyperMask(net, embedding_dim=3, hidden=(5,), sparsity=30.0, bn="batch")
            task = learner.add_task()
            learner.begin_task(task)
            learner.losses(x, torch.tensor([0, 2]), task).total.backward()
            grads.append({n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)
