"""What is not masked: frozen, shared and held near the last task's, or a copy for each task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from tests.support.conversion_cases import snapshot
from tests.support.hypermask_cases import perturb

CLOSE = {"rtol": 0, "atol": 1e-12}


class Net(nn.Module):
    """Layers, a norm with statistics, one without, an embedding, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(6) + 0.5)
        self.words = nn.Embedding(9, 5)
        self.stem = nn.Linear(5, 6)
        self.bn = nn.BatchNorm1d(6)
        self.ln = nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.stem(self.words(x).mean(1)) * self.gain)
        return self.out(self.ln(h.relu()))


def made(**options: Any) -> tuple[hmf.HyperMask, nn.Module]:
    torch.manual_seed(0)
    net = Net().double()
    plain = copy.deepcopy(net)
    learner = hmf.HyperMask(net, embedding_dim=3, hidden=(4,), capacity=2, sparsity=30.0, **options)
    for _ in range(2):
        learner.add_task()
    perturb(learner)
    plain.load_state_dict(net.state_dict())
    learner.eval()(words(), 0)
    return learner.train(), plain


def words(rows: int = 6) -> Tensor:
    return torch.randint(9, (rows, 4))


def train(learner: hmf.HyperMask, task: int, steps: int = 3, rate: float = 0.05) -> None:
    learner.begin_task(task)
    groups = learner.parameter_groups()
    optimizer = torch.optim.Adam([p for g in groups for p in g.params], lr=rate)
    for _ in range(steps):
        learner.losses(words(), torch.arange(6) % 3, task).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    learner.end_task()


def is_token(name: str, part: nn.Module | nn.Parameter) -> bool:
    return isinstance(part, nn.Parameter) and part.dim() == 1 and "." not in name


PATTERNS: list[tuple[Any, set[str]]] = [
    ("words", {"words.weight"}),
    ("*.bias", {"stem.bias", "bn.bias", "ln.bias", "out.bias"}),
    (nn.Linear, {"stem.weight", "stem.bias", "out.weight", "out.bias"}),
    (is_token, {"gain"}),
    ([nn.Embedding, "gain"], {"words.weight", "gain"}),
]


@pytest.mark.parametrize("option", ["exclude", "shared", "per_task"])
@pytest.mark.parametrize(
    ("pattern", "names"), PATTERNS, ids=["name", "glob", "class", "function", "several"]
)
def test_parts_are_chosen_by_name_glob_class_or_function(
    option: str, pattern: Any, names: set[str]
) -> None:
    learner, _ = made(**{option: pattern})
    reason = {
        "exclude": "excluded: frozen",
        "shared": "shared: trained for all tasks",
        "per_task": "a copy for each task",
    }[option]
    found = {entry["name"] for entry in learner.manifest() if entry["reason"] == reason}
    assert found == names
    frozen = {n for n, p in learner.net.named_parameters() if not p.requires_grad}
    in_norms = {n for n in ("bn.weight", "bn.bias", "ln.weight", "ln.bias")}
    assert frozen - in_norms == (set() if option == "shared" else names - in_norms)
    assert names.isdisjoint(learner.masks(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "word"}, r"exclude='word' matches no .*did you mean 'words'.*words, stem, bn"),
        ({"shared": nn.Conv2d}, r"shared=the class Conv2d matches no .*classes of its modules are"),
        ({"per_task": lambda name, part: False}, "per_task=a function matches no module"),
        ({"shared": lambda name: True}, r"shared=a function raised a TypeError for.*give"),
        ({"shared": nn.ReLU()}, "shared=ReLU.* is of type ReLU.*give names or globs"),
        ({"shared": [3]}, "shared=.*has 3; give names or globs"),
        ({"shared": "words", "exclude": nn.Embedding}, "words.weight is named by exclude and by s"),
    ],
)  # fmt: skip
def test_a_pattern_that_names_nothing_lists_what_there_is(
    options: dict[str, Any], message: str
) -> None:
    net = Net()
    before = snapshot(net)
    with pytest.raises(ConfigError, match=message):
        hmf.HyperMask(net, **options)
    with pytest.raises(ConfigError, match=message):
        hmf.conversion_report(net, **options)
    assert snapshot(net) == before


def by_hand(learner: hmf.HyperMask, plain: nn.Module, task: int) -> dict[str, Tensor]:
    """The plain network's weights, masked or of the task."""
    held = {n: v.detach().clone() for n, v in learner.net.state_dict().items()}
    held |= {n: held[n] * mask for n, mask in learner.masks(task).items()}
    norms = learner.norms
    for name, table in zip(norms._tabled, norms.tables, strict=True):
        held |= {f"{name}.{key}": value[task] for key, value in table.state_dict().items()}
    copies = zip(norms.copies.names, norms.copies.tables, strict=True)
    return held | {name: table[task].detach() for name, table in copies}


@pytest.mark.parametrize("bn", ["per_task", "frozen"])
@pytest.mark.parametrize("option", ["shared", "per_task"])
@pytest.mark.parametrize("pattern", ["words", "gain", "bn", "ln", "stem.bias", "[gw]*"])
def test_a_forward_is_the_plain_networks(option: str, pattern: str, bn: str) -> None:
    learner, plain = made(**{option: pattern}, bn=bn)
    for task in range(2):
        train(learner, task)
    x = words()
    learner.eval(), plain.eval()
    for task in range(2):
        truth = functional_call(plain, by_hand(learner, plain, task), (x,))
        torch.testing.assert_close(learner(x, task), truth, **CLOSE)
        torch.testing.assert_close(hmf.export_subnet(learner, task)(x), truth, **CLOSE)
    with torch.no_grad(), learner.blended(torch.tensor([0.0, 1.0]).double()) as net:
        torch.testing.assert_close(net(x), truth, **CLOSE)


def test_what_is_shared_is_held_near_the_last_tasks_by_the_l1_drift() -> None:
    learner, _ = made(shared=["words", "gain"])
    train(learner, 0)
    learner.begin_task(1)
    before = {n: p.detach().clone() for n, p in learner.net.named_parameters()}
    assert learner.losses(words(), torch.arange(6) % 3, 1).weight_reg == 0
    with torch.no_grad():
        for name in ("words.weight", "gain", "stem.weight", "out.bias"):
            learner.net.get_parameter(name).add_(0.25)
    losses = learner.losses(words(), torch.arange(6) % 3, 1)
    masks = learner.masks(1)
    # The exempt bias has no mask, and in the drift that of its logits.
    _, all_masks = learner._masked(1, None)
    expected = sum(
        0.25 * (all_masks[n].sum() if n in all_masks else p.numel())
        for n, p in before.items()
        if n in ("words.weight", "gain", "stem.weight", "out.bias")
    )
    assert "words.weight" not in masks
    torch.testing.assert_close(losses.weight_reg, expected.detach(), **CLOSE)
    losses.weight_reg.backward()
    assert torch.equal(learner.net.gain.grad, torch.ones(6, dtype=torch.float64))


def test_the_weights_to_stay_near_are_in_the_tasks_state() -> None:
    learner, _ = made(shared="gain")
    train(learner, 0)
    learner.begin_task(1)
    learner.net.gain.data.add_(1)
    tensors, state = learner.task_state()
    again, _ = made(shared="gain")
    again.load_state_dict(learner.state_dict())
    again.load_task_state(tensors, state)
    x, y = words(), torch.arange(6) % 3
    first, second = (each.losses(x, y, 1).weight_reg for each in (learner, again))
    assert first == second == 6
    assert any(value.shape == (6,) for value in learner.memory_parts()["weights of the last task"])
    learner.abandon_task()
    assert not learner.held_tensors()


def test_learning_a_task_moves_its_copies_alone() -> None:
    learner, _ = made(per_task=["words", "ln", "gain"])
    train(learner, 0)
    own = {n: p.detach().clone() for n, p in learner.net.named_parameters()}
    before = {n: p.detach().clone() for n, p in learner.norms.named_parameters()}
    train(learner, 1)
    for name in ("words.weight", "gain", "ln.weight"):
        assert torch.equal(learner.net.get_parameter(name), own[name])
    for name, table in learner.norms.named_parameters():
        assert torch.equal(table[0], before[name][0]), name
        assert not torch.equal(table[1], before[name][1]), name
    learner.add_task("more than there is room for")
    assert [len(table) for table in learner.norms.copies.tables] == [4, 4]
    assert torch.equal(learner.norms.copies.tables[0][2], own["gain"])
    with torch.no_grad():
        learner.eval()(words(), 2)


def test_a_shared_norm_has_statistics_of_each_task() -> None:
    learner, _ = made(shared="bn")
    before = learner.net.bn.weight.detach().clone()
    train(learner, 0)
    assert not torch.equal(learner.net.bn.weight, before)
    (table,) = [
        t for n, t in zip(learner.norms._tabled, learner.norms.tables, strict=True) if n == "bn"
    ]
    assert table.weight is None
    assert not torch.equal(table.running_mean[0], table.running_mean[1])


def test_the_report_lists_every_part_with_what_becomes_of_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Net()
            self.statistics = nn.SyncBatchNorm(4)
            self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
            self.tied = nn.Linear(5, 9, bias=False)
            self.tied.weight = self.body.words.weight

    net = Odd()
    before = snapshot(net)
    text = hmf.conversion_report(net, per_task="body.gain", exclude="body.out.bias")
    assert snapshot(net) == before
    lines = [" ".join(line.split()) for line in text.splitlines()]
    refused = "a SyncBatchNorm, with running statistics and a forward of its own"
    assert lines == [
        "body.gain 6 6 a copy for each task",
        "body.words.weight 9x5 45 masked (also tied.weight)",
        "body.stem.weight 6x5 30 masked",
        "body.stem.bias 6 6 masked",
        "body.bn.weight 6 6 normalisation",
        "body.bn.bias 6 6 normalisation",
        "body.ln.weight 6 6 normalisation",
        "body.ln.bias 6 6 normalisation",
        "body.out.weight 3x6 18 masked",
        "body.out.bias 3 3 excluded: frozen",
        f"statistics.weight 4 4 refused: {refused}",
        f"statistics.bias 4 4 refused: {refused}",
        "computed.bias 2 2 shared: trained for all tasks",
        "computed.parametrizations.weight.original0 2x1 2 shared: trained for all tasks",
        "computed.parametrizations.weight.original1 2x2 4 shared: trained for all tasks",
        "99 of 148 target parameters are masked; not masked: 6 a copy for each task, 24 "
        f"normalisation, 3 excluded: frozen, 8 refused: {refused}, 8 shared: trained for all tasks",
        "cannot be masked, trained for all tasks: computed",
        f"refused: statistics is {refused} (use a normalisation of torch.nn, or a subclass that "
        "keeps its forward)",
    ]


def test_a_plan_counts_copies_and_what_is_shared() -> None:
    """On the meta device, where a plan runs a step, copies are of every task and nothing fails."""
    with torch.device("meta"):
        learner = hmf.HyperMask(
            Net(), embedding_dim=3, hidden=(4,), capacity=7, per_task="words", shared="gain"
        )
    for _ in range(2):
        learner.add_task()
    x = torch.empty(6, 4, dtype=torch.int64, device="meta")
    learner.eval()(x, 0)
    learner.train().begin_task(0)
    learner.end_task()
    learner.begin_task(1)
    losses = learner.losses(x, torch.empty(6, dtype=torch.int64, device="meta"), 1)
    losses.total.backward()
    assert learner.norms.copies.tables[0].shape == (7, 9, 5)
    parts: dict[str, Any] = learner.memory_parts()
    assert sum(t.nbytes for t in parts["weights of the last task"]) == 4 * (57 + 6)


@pytest.mark.parametrize("method", [hmf.HNET, hmf.HyperInterval, hmf.SupSup, hmf.ExSSNeT])
def test_every_method_excludes_by_any_pattern(method: Callable[..., Any]) -> None:
    options = {} if method in (hmf.SupSup, hmf.ExSSNeT) else {"capacity": 2, "hidden": (4,)}
    if method is hmf.HyperInterval:
        options["arithmetic"] = "three_pass"
    net = Net()
    learner = method(net, exclude=nn.Embedding, **options)
    reasons = {entry["name"]: entry["reason"] for entry in learner.manifest()}
    assert reasons["words.weight"] == "excluded: frozen"
    for _ in range(2):
        learner.add_task()
    with torch.no_grad():
        outputs = learner.eval()(words(), 1)
        torch.testing.assert_close(hmf.export_subnet(learner, 1)(x := words()), learner(x, 1))
    assert outputs.shape == (6, 3)
