"""A step can be captured: nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import TrainingError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.optim import factored_adam as optim
from hypermask_fast.training.graph import GraphedStep
from hypermask_fast.training.loss_watch import LossWatch
from hypermask_fast.training.step import TrainingStep
from tests.support.graph_cases import BATCH, convolutional, make_learner, make_tasks, mlp
from tests.support.graph_stand_ins import MetaGraphs, OnDevice, launches_on_meta
from tests.support.hypermask_cases import adam_of

LOGITS = {"_mask_logits_vector_kernel"}
LOGITS |= {f"_trunk_{direction}_kernel" for direction in ("forward", "backward")}
SELECTION = {f"_select_{name}_kernel" for name in ("histogram", "refine", "end")}
MASKS = {"_mask_weights_forward_kernel", "_mask_weights_backward_kernel"}
BEGUN = {"_begin_kernel", "_complete_kernel"}
UPDATE = BEGUN | {"_step_rows_kernel", "_finish_kernel"}
ALWAYS = {"_batch_kernel", "_total_kernel", "_adam_rows_kernel"}


def take_steps(net: Callable[[], nn.Module], earlier: int, options: dict[str, Any]) -> None:
    """The whole step on the meta device, which takes the code of CUDA and has no values to read."""
    tasks = [task.to("meta") for task in make_tasks(crop=1, flip=True)]
    with torch.device("meta"):
        learner = make_learner(net, earlier, tasks, **options)
    optimizer = adam_of(learner, lr=1e-3, weight_decay=0.1)
    for group in optimizer.param_groups:
        group |= {"fused": True, "lr": torch.full((), 1e-3, device="meta")}
    graphs = MetaGraphs()
    step = GraphedStep(True, cuda=graphs)
    step.begin(TrainingStep(learner, optimizer), tasks[earlier].stream(BATCH), earlier)
    for number in range(6):
        step(number)
    assert step.status == "yes"
    # Beside the replay nothing is launched, until the data have to be shuffled anew.
    with OnDevice() as between:
        step(6)
    assert between.operations == 0
    assert learner.steps_taken == 7


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "check_group", lambda group: None)


@pytest.mark.parametrize(
    ("net", "earlier", "options"),
    [
        pytest.param(mlp, 0, {"sparsity": 0.0}, id="p0"),
        pytest.param(mlp, 0, {"ramp": 50}, id="ramp"),
        pytest.param(mlp, 2, {}, id="earlier-tasks"),
        pytest.param(mlp, 2, {"targets": "bfloat16"}, id="bfloat16-targets"),
        pytest.param(mlp, 2, {"targets": "frozen_head"}, id="frozen-head"),
        pytest.param(mlp, 2, {"regularized_tasks": 1}, id="sampled"),
        pytest.param(convolutional, 2, {}, id="conv-norm-dropout"),
        pytest.param(convolutional, 0, {"bn": "batch", "dropout": "first_step"}, id="published"),
        pytest.param(
            mlp, 2, {"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 3}, id="chunked"
        ),
    ],
)
def test_nothing_in_a_step_waits_for_the_device(
    net: Callable[[], nn.Module], earlier: int, options: dict[str, Any]
) -> None:
    take_steps(net, earlier, options)


@pytest.mark.parametrize(
    ("net", "earlier", "options", "kernels"),
    [
        pytest.param(mlp, 0, {"sparsity": 0.0}, LOGITS | MASKS | UPDATE, id="p0"),
        pytest.param(mlp, 0, {"ramp": 50}, LOGITS | SELECTION | MASKS | UPDATE, id="ramp"),
        pytest.param(mlp, 2, {}, LOGITS | SELECTION | MASKS | UPDATE, id="earlier-tasks"),
        pytest.param(
            convolutional,
            2,
            {"targets": "bfloat16"},
            LOGITS | SELECTION | MASKS | UPDATE,
            id="conv",
        ),
        pytest.param(
            mlp,
            2,
            {"targets": "frozen_head"},
            LOGITS | SELECTION | MASKS | BEGUN,
            id="frozen-head",
        ),
        pytest.param(
            mlp,
            2,
            {"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 3},
            SELECTION | MASKS,
            id="chunked",
        ),
    ],
)
def test_what_launches_the_kernels_of_a_step_waits_for_nothing(
    net: Callable[[], nn.Module],
    earlier: int,
    options: dict[str, Any],
    kernels: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = launches_on_meta(monkeypatch)
    take_steps(net, earlier, options)
    assert launched.keys() == kernels | ALWAYS


def reads_a_loss(losses: Losses) -> None:
    float(losses.total.detach())


def copies_to_the_host(losses: Losses) -> None:
    losses.total.detach().cpu()


def makes_a_tensor_from_numbers(losses: Losses) -> None:
    torch.tensor([1.0], device=losses.total.device)


def uses_a_tensor_of_the_host(losses: Losses) -> None:
    losses.total.detach() * torch.ones(())


def branches(losses: Losses) -> None:
    assert losses.total > 0


def has_a_size_of_its_own(losses: Losses) -> None:
    losses.logits[losses.logits > 0]


@pytest.mark.parametrize(
    "fault",
    [
        reads_a_loss,
        copies_to_the_host,
        makes_a_tensor_from_numbers,
        uses_a_tensor_of_the_host,
        branches,
        has_a_size_of_its_own,
    ],
)
def test_what_would_wait_is_found(
    fault: Callable[[Losses], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HyperMask.losses

    def losses(self: HyperMask, x: Tensor, y: Tensor, task: int, **rest: Any) -> Losses:
        out = original(self, x, y, task, **rest)
        fault(out)
        return out

    monkeypatch.setattr(HyperMask, "losses", losses)
    with pytest.raises((RuntimeError, NotImplementedError, TrainingError)):
        take_steps(mlp, 0, {})


@pytest.mark.gpu
def test_ordinary_steps_on_cuda_wait_for_nothing() -> None:
    tasks = [task.to("cuda") for task in make_tasks(crop=1, flip=True)]
    learner = make_learner(convolutional, 2, tasks, device="cuda")
    optimizer = adam_of(learner, lr=1e-2, weight_decay=0.1)
    step, stream = TrainingStep(learner, optimizer), tasks[2].stream(BATCH)
    watch = LossWatch("a", torch.device("cuda"), every=2)
    step(*stream.batch(0), 2)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number in range(1, 10):
            watch.see(number, step(*stream.batch(number), 2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.flush()
    assert set(watch.latest) == {"total", "task", "output_reg", "weight_reg"}
