"""A stream of tasks without boundaries: their number is found, and known ones are come back to."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.inference.boundaries import Boundaries
from hypermask_fast.inference.one_shot import one_shot
from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import Scenario, load_digits, permuted

STEPS, EVERY = 200, 100
ORDER = (0, 1, 2, 0, 2, 1)


@pytest.fixture(scope="module")
def digits() -> Scenario:
    # Their mean and standard deviation: a mask must say nothing of inputs that it was not for.
    return permuted(load_digits(), 3, mean=(0.305,), std=(0.376,))


def learner(keep: bool | str = "auto") -> SupSup:
    torch.manual_seed(0)
    return SupSup(MLP(64, (100, 100), 10), rule="threshold", keep_scores=keep)


class Loop:
    """The loop of a user, which can be stopped after any batch."""

    def __init__(self, scenario: Scenario, made: SupSup) -> None:
        self.streams = [t.stream(128, seed=1, task_id=i) for i, t in enumerate(scenario)]
        self.learner = made
        self.stream = Boundaries(made, every=EVERY, classes=10)
        self.optimizer: torch.optim.Optimizer | None = None

    def run(self, end: int, steps: int = STEPS) -> None:
        self.learner.train()
        for number in range(self.stream.batches, end):
            x, y = self.streams[ORDER[number // steps]].batch(number)
            if self.stream.see(x) or self.optimizer is None:
                self.optimizer = torch.optim.RMSprop(self.learner.parameters(), lr=2e-3)
            self.learner.step(x, y, self.stream.task, {"main": self.optimizer})


@pytest.mark.parametrize("keep", ["auto", True], ids=["masks", "scores"])
def test_tasks_are_found_and_come_back_to(keep: bool | str, digits: Scenario) -> None:
    made = learner(keep)
    loop = Loop(digits, made)
    loop.run(len(ORDER) * STEPS)
    assert loop.stream.found == [(i * STEPS, task) for i, task in enumerate(ORDER)]
    loop.stream.end()
    assert sorted(made.learned) == [0, 1, 2]
    made.eval()
    for number, task in enumerate(digits):
        x, y = next(task.evaluation_batches("test"))
        found = one_shot(made, x[:128]).task
        assert found == number
        assert (made(x, found).argmax(1) == y).float().mean() > 0.9


def test_a_stopped_stream_goes_on_with_the_same_bits(digits: Scenario) -> None:
    steps, end = 100, 210
    whole = Loop(digits, learner())
    whole.run(end, steps)
    part = Loop(digits, learner())
    part.run(130, steps)
    assert part.optimizer is not None
    saved = copy.deepcopy((part.learner.state_dict(), part.optimizer.state_dict()))
    state = json.loads(json.dumps(part.stream.state()))
    torch.manual_seed(9)
    rest = Loop(digits, SupSup(MLP(64, (100, 100), 10), rule="threshold"))
    rest.learner.load_state_dict(saved[0])
    rest.stream.load_state(state)
    rest.optimizer = torch.optim.RMSprop(rest.learner.parameters(), lr=2e-3)
    rest.optimizer.load_state_dict(saved[1])
    rest.run(end, steps)
    assert rest.stream.found == whole.stream.found
    assert len(rest.stream.found) > 1
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, rest.learner.state_dict()[name]), name


def test_what_cannot_be_followed_is_refused() -> None:
    made = learner()
    with pytest.raises(TypeError, match="give a learner such as SupSup"):
        Boundaries(MLP(4, (), 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has the phases"):
        Boundaries(ExSSNeT(MLP(4, (3,), 2)), classes=2)
    for options in ({}, {"classes": 0}, {"classes": 2, "every": 0}, {"classes": 2, "least": 1}):
        with pytest.raises(ConfigError):
            Boundaries(made, **options)
    stream = Boundaries(made, classes=10)
    with pytest.raises(RuntimeError, match="call see"):
        _ = stream.task
    with pytest.raises(CheckpointError, match=r"Boundaries\.state"):
        stream.load_state({"batches": 3})
