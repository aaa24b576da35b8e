"""Networks of other types train as in a loop, and training ends in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.scenarios.images import ImageDataset, ImageSet
from hypermask_fast.training.optimizers import make_optimizers

SMALL: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 2}
X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > X.mean()).long()
STEPS = 20


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 2))


METHODS: dict[str, Callable[[nn.Module], hmf.Learner]] = {
    "hypermask": lambda made: hmf.HyperMask(made, **SMALL),
    "hypermask, chunked": lambda made: hmf.HyperMask(made, **SMALL, head="chunked", chunk_size=64),
    "hnet": lambda made: hmf.HNET(made, **SMALL, lookahead=False),
    "hyperinterval": lambda made: hmf.HyperInterval(made, **SMALL),
    "supsup": hmf.SupSup,
    "exssnet": hmf.ExSSNeT,
    "hnet_r": lambda made: hmf.HNETR(made, input_shape=(1, 4, 4), task_heads="shared"),
    "hnet_tir": lambda made: hmf.HNETTIR(made, **SMALL, input_shape=(1, 4, 4)),
}


class Doubles(Dataset[Any]):
    """Items of float64, as NumPy gives them."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return X[place].double(), int(Y[place])


def trained(learner: hmf.Learner, optimizer: str, data: Any = (X, Y)) -> hmf.Trainer:
    trainer = hmf.Trainer(
        learner, steps=STEPS, batch_size=8, lr=1e-2, optimizer=optimizer, progress=False
    )
    trainer.fit(data, name="a", test=data)
    return trainer


def in_a_loop(learner: hmf.Learner, optimizer: str, dtype: torch.dtype) -> None:
    """The same steps by hand, on inputs that were made of the type before."""
    x = (X.to(dtype), Y)
    task = hmf.scenarios.make_task("a", x, x)
    settings = hmf.Trainer(learner, lr=1e-2, optimizer=optimizer, progress=False).settings
    number = learner.add_task("a", classes=task.classes)
    stream = task.stream(8, task_id=number)
    with torch.no_grad():
        learner.eval()(stream.batch(0)[0][:2], number)
    learner.train().begin_task(number, steps=STEPS)
    step = 0
    for phase in learner.phases(number, STEPS):
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
        made = make_optimizers(learner, settings)
        for _ in range(phase.steps):
            learner.step(*stream.batch(step), number, made)
            step += 1
    learner.end_task()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_trainer_takes_the_steps_of_a_loop(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and name in ("hnet_r", "hnet_tir"):
        pytest.skip("they look ahead, which only Adam does")
    optimizer = "sgd" if dtype == torch.float16 else "adam"
    learners = [METHODS[name](net().to(dtype)) for _ in range(2)]
    before = [p.detach().clone() for p in learners[0].parameters()]
    torch.manual_seed(1)
    trained(learners[0], optimizer)
    torch.manual_seed(1)
    in_a_loop(learners[1], optimizer, dtype)
    ours, theirs = (dict(learner.named_parameters()) for learner in learners)
    for key, p in ours.items():
        assert torch.equal(p, theirs[key]), key
        assert bool(p.isfinite().all()), key
    assert any(not torch.equal(p, old) for p, old in zip(ours.values(), before, strict=True))
    assert learners[0].net.get_parameter("1.weight").dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_whatever_the_type_of_the_examples_the_network_gets_its_own(dtype: torch.dtype) -> None:
    held = ImageSet((X * 255).byte(), Y)
    images = ImageDataset("dots", held, held, ("a", "b"))
    seen = []

    def note(_: nn.Module, given: tuple[Tensor]) -> None:
        seen.append(given[0].dtype)

    for data in ((X.double(), Y), (X.half(), Y), Doubles(), None):
        learner = hmf.HyperMask(net().to(dtype), **SMALL)
        learner.net.register_forward_pre_hook(note)
        trainer = hmf.Trainer(learner, steps=2, batch_size=8, progress=False)
        for _ in range(2):  # the same examples, once more
            if data is None:
                trainer.fit(hmf.scenarios.split(images, 1)[0])
            else:
                trainer.fit(data, name="a", test=data)
    assert set(seen) == {dtype}


def test_tokens_stay_integers() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    learner = hmf.HyperMask(made, **SMALL)
    tokens = torch.randint(7, (40, 3), generator=torch.Generator().manual_seed(1))
    trainer = hmf.Trainer(learner, steps=2, batch_size=8, progress=False)
    trainer.fit((tokens, tokens[:, 0] % 2), name="a", test=(tokens, tokens[:, 0] % 2))
    assert trainer.tasks_done == 1


def test_adam_of_float16_is_refused_and_leaves_nothing() -> None:
    learner = hmf.HyperMask(net().half(), **SMALL)
    trainer = hmf.Trainer(learner, steps=2, batch_size=8, progress=False)
    with pytest.raises(ConfigError, match=r"of torch.float16 and the optimizer 'adam', whose sec"):
        trainer.fit((X, Y), name="a", test=(X, Y))
    assert not learner.tasks
    assert learner.current is None


def test_training_and_loading_end_in_evaluation_mode() -> None:
    learner = hmf.HyperMask(net(), **SMALL)
    assert learner.training
    trainer = trained(learner, "adam")
    assert not any(module.training for module in learner.modules())
    state = trainer.state()
    other = hmf.HyperMask(net(), **SMALL)
    again = hmf.Trainer(other, steps=STEPS, batch_size=8, lr=1e-2, progress=False)
    again.add(trainer.tasks[0])
    again.load_state(*state)
    assert not other.training
    # Training goes on in training mode.
    modes = []
    again.hooks.append(lambda it: modes.append(it.learner.training))
    again.fit((X, Y), name="b", test=(X, Y))
    assert modes == [True] * STEPS
    assert not other.training


def test_a_task_that_fails_leaves_evaluation_mode_too() -> None:
    learner = hmf.HyperMask(net(), **SMALL)
    trainer = hmf.Trainer(learner, steps=2, batch_size=8, progress=False)
    learner.criterion = lambda outputs, labels: outputs.sum() * torch.nan
    with pytest.raises(TrainingError):
        trainer.fit((X, Y), name="a", test=(X, Y))
    assert not learner.training
