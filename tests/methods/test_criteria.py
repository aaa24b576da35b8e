"""Losses of one's own: what a criterion is given, and what it must return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from tests.methods.test_names import METHODS, net, train
from tests.methods.test_names import X as IMAGES
from tests.methods.test_names import Y as LABELS

SMALL: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 2}
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
Y = torch.tensor([0, 1, 2, 0])
SOFT = torch.rand(4, 3, generator=torch.Generator().manual_seed(3)).softmax(1)
PIXELS = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(4))
TOKENS = torch.tensor([[1, 2, 3], [0, 0, 4], [5, 1, 1], [2, 2, 0]])


def vectors(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, outputs))


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def tagger() -> nn.Module:
    return nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3))


def of_tokens(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


# Network, inputs, targets, criterion.
CASES: dict[str, tuple[Any, Tensor, Tensor, Any]] = {
    "label smoothing": (vectors, X, Y, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "soft labels": (vectors, X, SOFT, nn.CrossEntropyLoss()),
    "several labels": (vectors, X, SOFT.round(), nn.BCEWithLogitsLoss()),
    "regression": (lambda: vectors(1), X, SOFT[:, :1], nn.MSELoss()),
    "pixels": (segmenter, PIXELS, (PIXELS.sum(1) > 0).long(), nn.CrossEntropyLoss()),
    "tokens": (tagger, TOKENS, TOKENS % 3, of_tokens),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", [hmf.HyperMask, hmf.SupSup])
def test_the_loss_of_a_batch_is_the_criterion_of_the_networks_outputs(
    case: str, method: Any
) -> None:
    made, x, y, criterion = CASES[case]
    torch.manual_seed(0)
    learner = method(made(), **(SMALL if method is hmf.HyperMask else {"density": 0.5}))
    learner.add_task("a")
    learner(x, task="a")
    learner.begin_task("a")
    found = learner.losses(x, y, "a", criterion=criterion)
    with learner.activated("a") as under:
        expected = criterion(under(x), y)
    assert torch.allclose(found.task, expected, rtol=1e-6)
    assert torch.isfinite(found.total)
    # An attribute does the same, and losses(criterion=) goes before it.
    learner.criterion = criterion
    assert torch.equal(learner.losses(x, y, "a").task, found.task)
    doubled = learner.losses(x, y, "a", criterion=lambda out, t: 2 * criterion(out, t))
    assert torch.allclose(doubled.task, 2 * found.task, rtol=1e-6)
    first = float(found.task.detach())
    optimizer = hmf.FactoredAdam(learner.parameters(), lr=0.05)
    for _ in range(30):
        losses = learner.step(x, y, "a", {"main": optimizer})
    assert float(losses.task.detach()) < first


@pytest.mark.parametrize("name", METHODS)
def test_the_published_loss_given_as_a_criterion_changes_no_bit(name: str) -> None:
    states = []
    for criterion in (None, F.cross_entropy):
        torch.manual_seed(0)
        learner = METHODS[name]()
        learner.criterion = criterion
        for task in ("a", "b"):
            learner.add_task(task, classes=[0, 1])
            train(learner, task)
        states.append(learner.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss()]
)
def test_a_task_of_fewer_classes_gives_a_criterion_its_own_outputs(criterion: Any) -> None:
    torch.manual_seed(0)
    learner = hmf.HyperMask(vectors(), **SMALL)
    learner.add_task("two", classes=[4, 9])
    y = Y % 2
    learner(X, task="two")
    learner.begin_task("two")
    found = learner.losses(X, y, "two", criterion=criterion)
    assert found.logits.shape == (4, 2)
    with learner.activated("two") as under:
        expected = criterion(under(X)[:, :2], y)
    assert torch.allclose(found.task, expected, rtol=1e-6)
    assert bool((learner(X, task="two")[:, 2] == -torch.inf).all())
    several = learner.losses(X, SOFT[:, :2].round(), "two", criterion=nn.BCEWithLogitsLoss())
    assert torch.isfinite(several.total)


def test_classes_along_another_dimension() -> None:
    torch.manual_seed(0)
    learner = hmf.HyperMask(segmenter(), **SMALL)
    learner.add_task("two", classes=[0, 1])
    with pytest.raises(ValueError, match=r"shape \(4, 3, 6, 6\).*class_dim=None; set learner.cl"):
        learner(PIXELS, task="two")
    learner.class_dim = 1
    masked = learner(PIXELS, task="two")
    assert bool((masked[:, 2] == -torch.inf).all() and masked[:, :2].isfinite().all())
    learner.begin_task("two")
    y = (PIXELS.sum(1) > 0).long()
    found = learner.losses(PIXELS, y, "two", criterion=nn.CrossEntropyLoss())
    assert found.logits.shape == (4, 2, 6, 6)
    learner.end_task()
    learner.add_task("all", classes=[0, 1, 2])
    mixed = learner.eval()(PIXELS, task=["two", "all", "all", "two"])
    assert torch.allclose(mixed[0], learner(PIXELS, task="two")[0], rtol=1e-5)
    assert torch.allclose(mixed[1], learner(PIXELS, task="all")[1], rtol=1e-5)


def test_what_a_criterion_returns_is_checked() -> None:
    learner = hmf.HyperMask(vectors(), **SMALL)
    learner.add_task()
    learner.begin_task(0)
    with pytest.raises(ValueError, match=r"criterion returned torch.float32 of shape \(4,\); make"):
        learner.losses(X, Y, 0, criterion=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(TypeError, match=r"the criterion returned 3\.0; make"):
        learner.losses(X, Y, 0, criterion=lambda *_: 3.0)
    with pytest.raises(TypeError, match="criterion is 'mse'; give a function"):
        learner.losses(X, Y, 0, criterion="mse")
    learner.criterion = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match="criterion is 3; give a function"):
        learner.losses(X, Y, 0)


def test_labels_are_checked_where_there_is_no_criterion() -> None:
    learner = hmf.HyperMask(vectors(), **SMALL)
    learner.add_task()
    learner.begin_task(0)
    with pytest.raises(ValueError, match=r"labels are torch.float32 .* or a criterion"):
        learner.losses(X, SOFT, 0)


def test_a_criterion_that_is_a_module_is_a_part_of_the_learner() -> None:
    learner = hmf.HyperMask(vectors(), **SMALL)
    learner.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert "criterion.weight" in learner.state_dict()
    assert learner.double().criterion.weight.dtype == torch.float64  # type: ignore[union-attr]
    before = learner.fixed_in_graph()
    learner.criterion = None
    assert learner.fixed_in_graph() != before


def test_the_worst_case_of_hyperinterval_takes_a_criterion_of_labels() -> None:
    torch.manual_seed(0)
    learner = hmf.HyperInterval(vectors(), **SMALL, mode="task")
    learner.add_task()
    learner.begin_task(0)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    found = learner.losses(X, Y, 0, criterion=smooth)
    low, mid, up = learner.bounds(X, 0)
    worst = torch.where(F.one_hot(Y, 3).bool(), low, up)
    assert torch.allclose(found.center, smooth(mid, Y), rtol=1e-5)
    assert torch.allclose(found.worst_case, smooth(worst, Y), rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels are torch.float32"):
        learner.losses(X, SOFT, 0, criterion=smooth)


def test_a_softmax_over_all_tasks_refuses_a_criterion() -> None:
    for learner in (
        hmf.HNET(net(), **SMALL, task_heads="growing"),
        hmf.HNETR(net(), input_shape=(1, 4, 4), task_heads="growing"),
    ):
        learner.criterion = F.cross_entropy
        learner.add_task(classes=[0, 1])
        with pytest.raises(ConfigError, match="task_heads='growing' learns the cross-entropy"):
            train(learner, 0)


def test_a_trainer_takes_the_learners_criterion() -> None:
    torch.manual_seed(0)
    learner = hmf.HyperMask(net(), **SMALL)
    seen = []

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(labels))
        return F.cross_entropy(outputs, labels, label_smoothing=0.1)

    learner.criterion = counted
    trainer = hmf.Trainer(learner, steps=3, batch_size=4, progress=False)
    trainer.fit((IMAGES, LABELS), name="a", test=(IMAGES, LABELS))
    assert seen == [4, 4, 4]
