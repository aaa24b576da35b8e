"""Inference of the task by the gradient of a blend of masks, against the recorded runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hypermask_fast import HyperMask
from hypermask_fast.inference import one_shot
from hypermask_fast.inference.one_shot import Inferred
from hypermask_fast.masks.packed import pack
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import MLP
from tests.support.subnetwork_cases import PASSES, Run, SmallConvNet, choose_passes, close

GOALS = {"topk": ("entropy",), "threshold": ("entropy", "g")}


def recorded(data_dir: Path, name: str) -> tuple[Run, SupSup]:
    """A learner with the masks that the recorded run had."""
    run = Run(data_dir / "golden" / "supsup.npz", name)
    learner = SupSup(run.network(), weights="as_is", superfluous=8 * (name == "threshold"))
    run.begin(learner)
    for task in range(run.config["tasks"]):
        learner.bits[task] = pack(run.flat(f"after/{task}/mask").bool())
        learner._learned.append(task)
    return run, learner.eval()


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("search", ["oneshot", "binary2"])
@pytest.mark.parametrize("name", GOALS)
def test_the_recorded_answers(
    name: str, search: str, passes: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_passes(passes, monkeypatch)
    run, learner = recorded(data_dir, name)
    find = one_shot.one_shot if search == "oneshot" else one_shot.binary
    tasks, compared = run.config["tasks"], 0
    for goal in GOALS[name]:
        for rows in run.config["data_to_repeat"]:
            for count in range(1, tasks + 1):
                for task in range(count):
                    key = f"{search}/{goal}/{rows}/{count}/{task}"
                    x = run.tensor(f"probe/{task}/x")
                    found = find(
                        *(learner, x),
                        objective=goal,
                        rows=rows,
                        classes=run.config["real_neurons"],
                        tasks=range(count),
                    )
                    assert found.task == int(run[f"{key}/inferred"])
                    alpha, grad = run.tensor(f"{key}/alpha"), run.tensor(f"{key}/grad")
                    # Tasks that were not learned have a factor there, and no mask.
                    alpha[:, count:] = 0
                    close(found.alpha, alpha, 1e-5, key)
                    close(found.grad, grad, 2e-5, key)
                    if search == "oneshot":
                        close(found.objective[0], run[f"{key}/objective"], 1e-5, key)
                    routed = learner(x, found.task)
                    close(routed, run[f"{key}/routed_logits"], 1e-5, key)
                    compared += 1
    assert compared == 2 * len(GOALS[name]) * tasks * (tasks + 1) // 2


def test_the_gradient_from_bits_is_autograds() -> None:
    """With batch norm, against a sum of dense masks that autograd differentiates."""
    torch.manual_seed(0)
    learner = SupSup(SmallConvNet((6, 8), (1, 2), 4, 4).double(), density=0.4)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    for task in range(3):
        learner.add_task()
        learner.begin_task(task)
        learner.losses(x + task, torch.arange(5) % 4, task)
        learner.end_task()
    learner.eval()
    alpha = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    value, grad = one_shot.gradient_of(learner, x, alpha, one_shot.entropy)
    dense = alpha.clone().requires_grad_()
    weights = {
        name: sum(dense[task] * learner.masks(task)[name] for task in range(3)) * w.detach()
        for name, w in learner.net.named_parameters()
    }
    with learner._network.applied(weights, learner.norms.blended(dense)) as net:
        expected = one_shot.entropy(net(x))
        (of_dense,) = torch.autograd.grad(expected, dense)
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.allclose(grad, of_dense, rtol=1e-10, atol=1e-14)


def calls_of(learner: nn.Module) -> list[int]:
    calls: list[int] = []
    learner.net.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_one_shot_takes_one_forward_for_any_number_of_tasks() -> None:
    torch.manual_seed(0)
    learner = SupSup(MLP(12, (16,), 4, bias=False), rule="threshold")
    for task in range(40):
        learner.add_task()
        learner.begin_task(task)
        learner.end_task()
    calls, x = calls_of(learner.eval()), torch.randn(6, 12)
    found = one_shot.one_shot(learner, x)
    assert len(calls) == 1
    assert found.task == int(found.grad[0].argmin())
    calls.clear()
    assert one_shot.binary(learner, x).alpha.shape[0] == len(calls) == 6


def test_other_methods_blend_too() -> None:
    torch.manual_seed(0)
    learner = HyperMask(MLP(12, (8,), 3), embedding_dim=4, hidden=(5,), capacity=2)
    for _ in range(2):
        learner.add_task()
    x = torch.randn(6, 12)
    learner(x, 0)
    found: Inferred = one_shot.one_shot(learner.eval(), x, tasks=[0, 1])
    assert found.grad.shape == (1, 2)


def test_what_is_refused() -> None:
    torch.manual_seed(0)
    learner = SupSup(MLP(12, (8,), 3, bias=False))
    x = torch.randn(4, 12)
    learner.add_task(classes=range(3))
    with pytest.raises(ValueError, match="no task was learned"):
        one_shot.one_shot(learner, x)
    learner.begin_task(0)
    learner.end_task()
    with pytest.raises(ValueError, match="needs outputs beyond the 3 classes"):
        one_shot.one_shot(learner, x, objective="g")
    with pytest.raises(ValueError, match=r"objective is 'entropie' \(did you mean 'entropy'"):
        one_shot.one_shot(learner, x, objective="entropie")
    with pytest.raises(ValueError, match="base is 1"):
        one_shot.binary(learner, x, base=1)
    with pytest.raises(ValueError, match="give at least one"):
        one_shot.one_shot(learner, x[:0])
    with pytest.raises(ValueError, match="task 3 was not added"):
        one_shot.one_shot(learner, x, tasks=[3])
    learner.add_task()
    learner.begin_task(1)
    learner.end_task()
    learner.bits[1] = learner.bits[0]
    with pytest.raises(ValueError, match="does not tell them apart"):
        one_shot.binary(learner, x)
    with pytest.raises(ValueError, match="not finite"):
        one_shot.one_shot(learner, torch.full((2, 12), torch.nan))


def test_a_batch_without_a_task_is_of_the_one_that_stands_out_or_of_a_new_one() -> None:
    torch.manual_seed(0)
    learner = SupSup(MLP(20, (64, 64), 24, bias=False), rule="threshold", superfluous=20)
    for task in range(6):
        learner.add_task(str(task), classes=range(4))
    centres = torch.randn(4, 20)
    permutations = [torch.randperm(20) for _ in range(3)]

    def batch(task: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(4, (32,))
        return (centres[y] + 0.3 * torch.randn(32, 20))[:, permutations[task]], y

    for task in range(3):
        learner.begin_task(task)
        optimizer = torch.optim.RMSprop([learner.scores], lr=1e-3)
        for _ in range(200):
            learner.step(*batch(task), task, {"main": optimizer})
        if task < 2:
            learner.end_task()
    # The current task is known too; of the others two are compared, to make five.
    assert learner.current == 2
    for task in range(3):
        x = batch(task)[0]
        assert one_shot.recognized(learner, x) == task
        grad = one_shot.one_shot(learner, x, objective="g", tasks=range(5)).grad[0][:5]
        nu = float((-grad).softmax(0).max())
        assert one_shot.recognized(learner, x, factor=5 * nu * 0.999) == task
        assert one_shot.recognized(learner, x, factor=5 * nu * 1.001) is None


def test_what_a_stream_needs() -> None:
    learner = SupSup(MLP(12, (8,), 3, bias=False))
    learner.add_task()
    with pytest.raises(ValueError, match="0 tasks were begun and 1 were added"):
        one_shot.recognized(learner, torch.randn(4, 12))
