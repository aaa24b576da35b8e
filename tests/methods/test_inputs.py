"""Networks of several inputs, keyword inputs, and outputs that are no single tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import hypermask_fast as hmf
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.errors import ConfigError

SMALL: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 2}
G = torch.Generator().manual_seed(1)
A, B = torch.randn(6, 5, generator=G), torch.randn(6, 3, generator=G)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
IDS = torch.tensor([1, 0, 0, 1, 1, 0])


class TwoInputs(nn.Module):
    """A branch for each input; the second by position or keyword, and a factor that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(3, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor | None = None, *, scale: float = 1.0) -> Any:
        hidden = self.left(a) if b is None else self.left(a) + self.right(b)
        return self.last(hidden.relu()) * scale


class Several(TwoInputs):
    """The same with a dict of outputs, one of them a pair, and what is no tensor."""

    def forward(self, a: Tensor, b: Tensor | None = None, *, scale: float = 1.0) -> Any:
        logits = super().forward(a, b, scale=scale)
        return {"logits": logits, "pair": (logits.sum(1), logits[:, :1]), "name": "several"}


METHODS: dict[str, Callable[[nn.Module], hmf.Learner]] = {
    "hypermask": lambda net: hmf.HyperMask(net, **SMALL),
    "hnet": lambda net: hmf.HNET(net, **SMALL, head="full", lookahead=False),
    "supsup": lambda net: hmf.SupSup(net, density=0.6),
    "exssnet": lambda net: hmf.ExSSNeT(net, density=0.6),
    "three_pass": lambda net: hmf.HyperInterval(
        net, **SMALL, mode="task", arithmetic="three_pass", evaluates="task"
    ),
}


def learner_of(name: str, net: nn.Module) -> hmf.Learner:
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    learner = METHODS[name](net)
    for task in range(2):
        learner.add_task(f"t{task}")
    learner.eval()(A, B, task=0)
    return learner


def alone(learner: hmf.Learner, task: int, *args: Any, **kwargs: Any) -> Any:
    """What a plain network of the same class says with the task's weights."""
    plain = type(learner.net).__mro__[0]
    made = Several() if issubclass(plain, Several) else TwoInputs()
    made.load_state_dict(learner.net.state_dict())
    return functional_call(made, learner.task_weights(task), args, kwargs)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_by_position_and_keyword(name: str) -> None:
    learner = learner_of(name, TwoInputs())
    with torch.no_grad():
        for task in range(2):
            expected = alone(learner, task, A, b=B, scale=2.0)
            for found in (
                learner(A, B, task=task, scale=2.0),
                learner(A, b=B, task=task, scale=2.0),
                learner(a=A, b=B, task=task, scale=2.0),
                learner({"a": A, "b": B, "scale": 2.0}, task=task),
                learner.net_for(task)(A, b=B, scale=2.0),
            ):
                assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(learner((A, B), task=task), learner(A, B, task))
            assert torch.equal(learner(A, None, task=task), learner(A, task=task))


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_several_tasks_and_parts_of_a_batch(name: str) -> None:
    learner = learner_of(name, TwoInputs())
    with torch.no_grad():
        each = [learner(A, B, task=task, scale=2.0) for task in range(2)]
        mixed = learner(A, B, task=IDS, scale=2.0)
        expected = torch.where(IDS[:, None] == 1, each[1], each[0])
        assert torch.allclose(mixed, expected, rtol=1e-5, atol=1e-6)
        for batch_size in (None, 4):
            both = learner.all_outputs({"a": A, "b": B, "scale": 2.0}, batch_size=batch_size)
            assert torch.allclose(both, torch.stack(each), rtol=1e-5, atol=1e-6)
        read = learner.features((A, B), "t1")
    with learner.activated(1) as net, torch.no_grad():
        hidden = F.linear(read, *(learner.task_weights(1).get(n, torch.zeros(3)) for n in LAST))
        assert torch.allclose(hidden, net(A, B), rtol=1e-4, atol=1e-5)


LAST = ("last.weight", "last.bias")


@pytest.mark.parametrize("name", ["hypermask", "hnet", "supsup", "exssnet"])
def test_outputs_that_are_no_tensor(name: str) -> None:
    learner = learner_of(name, Several())
    with torch.no_grad():
        each = [learner(A, B, task=task) for task in range(2)]
        expected = alone(learner, 1, A, B)
        assert each[1].keys() == expected.keys()
        assert torch.allclose(each[1]["pair"][0], expected["pair"][0], rtol=1e-5, atol=1e-6)
        mixed = learner(A, B, task=IDS)
        assert mixed["name"] == "several"
        for place in range(2):
            wanted = torch.stack([each[i]["pair"][place][r] for r, i in enumerate(IDS.tolist())])
            assert torch.allclose(mixed["pair"][place], wanted, rtol=1e-5, atol=1e-6)
        both = learner.all_outputs((A, B), batch_size=4)
        assert both["logits"].shape == (2, 6, 3)
        assert torch.allclose(both["logits"][1], each[1]["logits"], rtol=1e-5, atol=1e-6)
    learner.train().begin_task("t0")
    with pytest.raises(TypeError, match="which has no cross-entropy; give a criterion"):
        learner.losses((A, B), Y, "t0")

    def criterion(outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"], targets["label"]) + outputs["pair"][0].mean()

    with pytest.raises(ConfigError, match="tasks are told apart by logits"):
        learner.predict((A, B), tasks=["t0", "t1"])
    losses = learner.losses((A, B), {"label": Y}, "t0", criterion=criterion)
    losses.total.backward()
    assert losses.detached().logits["logits"].grad_fn is None
    assert any(p.grad is not None for p in learner.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_step_learns_from_several_inputs(name: str) -> None:
    learner = learner_of(name, TwoInputs()).train()
    learner.begin_task("t0")
    groups: dict[str, list[nn.Parameter]] = {}
    for group in learner.parameter_groups(learner.phase):
        groups.setdefault(group.optimizer, []).extend(group.params)
    optimizers = {key: hmf.FactoredAdam(params, lr=0.05) for key, params in groups.items()}
    x = {"a": A, "b": B}
    losses = [float(learner.step(x, Y, "t0", optimizers).task.detach()) for _ in range(25)]
    assert losses[-1] < losses[0] - 0.1
    learner.end_task()
    plain = hmf.export_subnet(learner, 0)
    with torch.no_grad():
        found = learner.eval()(A, B, task="t0")
        assert torch.allclose(plain(A, B), found, rtol=1e-5, atol=1e-6)
        assert torch.equal(learner.predict((A, B)).classes, found.argmax(1))
    with pytest.raises(ConfigError, match="looks at one tensor, and inputs"):
        learner.predict((A, B), "one_shot")


@pytest.mark.parametrize("name", ["hypermask", "supsup", "hnet", "three_pass"])
def test_a_compiled_step_takes_several_inputs_too(name: str) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    losses = []
    for compiler in (None, Compiler(True, backend)):
        learner = learner_of(name, TwoInputs()).train()
        if compiler is not None:
            learner.compile_steps(compiler)
        learner.begin_task("t0")
        losses.append(learner.losses({"a": A, "b": B, "scale": 2.0}, Y, "t0").total)
    torch._dynamo.reset()
    assert seen
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


def test_what_has_no_rows_is_given_to_one_task_and_refused_for_several() -> None:
    learner = learner_of("hypermask", Attending())
    mask = torch.zeros(3, 3).fill_diagonal_(1.0).bool()
    tokens = torch.randn(6, 3, 4, generator=G)
    learner(tokens, mask, task=0)
    with pytest.raises(ValueError, match=r"input 1 has shape \(3, 3\) and the batch 6 rows"):
        learner(tokens, mask, task=IDS)
    with pytest.raises(ValueError, match="input 'mask' has tensors inside and the batch 6 rows"):
        learner.all_outputs({"x": tokens, "mask": [mask]}, batch_size=4)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        x = self.inner(x if x.dim() == 3 else F.pad(x[:, None, :4], (0, 0, 0, 2)))
        given = mask[0] if isinstance(mask, list) else mask
        if given is not None and given.dtype == torch.bool:
            x = given.to(x) @ x
        return self.last(x.mean(1))


def test_wrong_inputs_are_refused_in_a_sentence() -> None:
    learner = learner_of("hypermask", TwoInputs())
    with pytest.raises(TypeError, match="task is missing; give learner"):
        learner(A)
    with pytest.raises(TypeError, match="give at least one tensor"):
        learner(a=3, task=0)
    with pytest.raises(ValueError, match=r"inputs\[1\] are on meta and the learner on cpu"):
        learner(A, B.to("meta"), task=0)
    with pytest.raises(ValueError, match=r"a batch of inputs \(0 torch.float32 \(6, 5\); 'c' torc"):
        learner(A, c=B, task=0)
    learner.begin_task(0)
    with pytest.raises(ValueError, match=r"labels are torch.int64 of shape \(2,\) for inputs \(0"):
        learner.losses((A, B), Y[:2], 0)


def test_interval_arithmetic_takes_one_tensor() -> None:
    learner = hmf.HyperInterval(TwoInputs(), **SMALL)
    learner.add_task()
    learner.begin_task(0)
    with pytest.raises(ConfigError, match="arithmetic='interval' takes one tensor and was given"):
        learner.losses((A, B), Y, 0)


def test_the_input_called_x_may_come_by_keyword_of_a_network_that_names_it_otherwise() -> None:
    learner = hmf.HyperMask(nn.Linear(5, 3), **SMALL)
    learner.add_task()
    assert torch.equal(learner(x=A, task=0), learner(A, task=0))
