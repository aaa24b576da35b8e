"""A trainer is given data of one's own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError


class Blobs(Dataset[tuple[Tensor, int]]):
    """Points about the corner of their class, moved at random each time they are read."""

    def __init__(self, count: int = 60) -> None:
        self.labels = [place % 3 for place in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        corner = 2 * torch.eye(4)[self.labels[place]]
        return corner + 0.3 * torch.randn(4), self.labels[place]


def fixed(dataset: Blobs) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    items = [dataset[place] for place in range(len(dataset))]
    return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])


def make_trainer(seed: int = 3, **options: Any) -> hmf.Trainer:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    learner = hmf.HyperMask(net, embedding_dim=4, hidden=(8,), sparsity=10.0)
    options = {"lr": 1e-2, "batch_size": 16, "steps": 60} | options
    return hmf.Trainer(learner, progress=False, seed=5, **options)


def test_tensors_a_dataset_and_a_loader_of_them_train_the_same() -> None:
    pair = fixed(Blobs())
    dataset = TensorDataset(*pair)
    ends = []
    for data in (pair, dataset, DataLoader(dataset, batch_size=7, shuffle=True)):
        trainer = make_trainer()
        accuracy = trainer.fit(data, name="blobs", test=data, validation=0.2)
        assert accuracy[0] > 90
        ends.append(copy.deepcopy(trainer.learner.state_dict()))
    for end in ends[1:]:
        for name, value in end.items():
            assert torch.equal(value, ends[0][name]), name


def test_accuracy_is_of_the_data_that_were_given() -> None:
    trainer, (x, y) = make_trainer(steps=3), fixed(Blobs())
    seen = trainer.fit((x, y), name="blobs", test=(x[:17], y[:17]))[0]
    trainer.learner.eval()
    right = trainer.learner(x[:17], task=0)[:, :3].argmax(1) == y[:17]
    assert seen == pytest.approx(100 * right.double().mean().item())


def test_tokens_train_an_embedding() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.words(tokens).mean(1))

    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (80, 7))
    labels = (tokens == 0).any(1).long()
    learner = hmf.HyperMask(Bag(), embedding_dim=4, hidden=(8,), exclude="words")
    trainer = hmf.Trainer(learner, progress=False, lr=1e-2, batch_size=16, steps=80)
    assert trainer.fit((tokens, labels), name="zeros", test=(tokens, labels))[0] > 80


def test_training_continues_on_a_dataset_bit_by_bit() -> None:
    data = {"name": "blobs", "test": fixed(Blobs()), "workers": 1}
    whole = make_trainer(steps=8)
    whole.fit(Blobs(), **data)

    class Stop(Exception):
        pass

    def stop(trainer: hmf.Trainer) -> None:
        if trainer.step == 5:
            raise Stop

    first = make_trainer(steps=8)
    first.hooks.append(stop)
    with pytest.raises(Stop):
        first.fit(Blobs(), **data)
    tensors, state = first.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    second = make_trainer(seed=9, steps=8)
    task = hmf.scenarios.make_task("blobs", Blobs(), data["test"])
    second.add(task)
    second.load_state(tensors, state)
    second.fit(task)
    expected = whole.learner.state_dict()
    for name, value in second.learner.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        ((torch.rand(6, 4), torch.arange(6) % 3), {}, TypeError, "without name and test;"),
        (Blobs(), {"name": "a"}, TypeError, "Blobs.* without test;"),
        (np.zeros((6, 4)), {"name": "a", "test": None}, TypeError, "ndarray"),
        (Blobs(), {"name": "a", "test": 3}, TypeError, "test of task 'a' is 3"),
    ],
)
def test_missing_parts_are_named(
    data: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    trainer = make_trainer()
    with pytest.raises(error, match=match):
        trainer.fit(data, **options)
    assert not trainer.learner.tasks


def test_a_task_has_its_data_already() -> None:
    task = hmf.scenarios.make_task("blobs", Blobs(), Blobs())
    with pytest.raises(TypeError, match=r"\['test'\] are given with a Task"):
        make_trainer().fit(task, test=Blobs())


def test_other_examples_by_the_name_of_a_task_are_refused() -> None:
    trainer, (x, y) = make_trainer(steps=1), fixed(Blobs())
    trainer.fit((x, y), name="blobs", test=(x, y))
    with pytest.raises(ConfigError, match="other examples"):
        trainer.fit((x + 1, y), name="blobs", test=(x, y))
