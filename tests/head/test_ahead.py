"""Steps that look ahead, native and in PyTorch, against autograd and torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.head import passes
from hypermask_fast.head.ahead import shifted
from hypermask_fast.head.types import Head, HeadStep, KeptChunks
from tests.support.head_cases import copied, make_head, options_of, tensors, torch_step

COEFFICIENT = 0.3
DOUBLE = torch.float64

# Rows, width, given and earlier tasks, and chunks of each with what the last has fewer.
SIZES = [
    pytest.param(1, 1, 1, 1, 1, 0, id="1x1"),
    pytest.param(7, 3, 1, 2, 1, 0, id="7x3"),
    pytest.param(1003, 25, 1, 9, 1, 0, id="1003x25"),
    pytest.param(50, 4, 1, 3, 1, 9, id="50x4-larger-than-the-network"),
    pytest.param(33, 131, 2, 4, 2, 5, id="33x131-2-chunks"),
    pytest.param(1100, 10, 12, 4, 12, 61, id="1100x10-12-chunks"),
    pytest.param(2500, 48, 3, 1, 3, 2499, id="2500x48-3-chunks"),
]
OPTIONS = [
    pytest.param({}, id="adam"),
    pytest.param({"step": 1}, id="first"),
    pytest.param({"weight_decay": 0.1}, id="l2"),
    pytest.param({"weight_decay": 0.1, "decoupled": True}, id="adamw"),
    pytest.param({"maximize": True}, id="maximize"),
    pytest.param({"grad_scale": 0.25}, id="scale"),
    # Where it stands matters: as large as the root of the second moment.
    pytest.param({"eps": 0.5}, id="eps"),
]


def by_formula(p: Tensor, grad: Tensor, moments: Any, **options: Any) -> Tensor:
    """The published look-ahead."""
    o = options_of(**options)
    grad = (-grad if o.maximize else grad) * o.grad_scale
    if not o.decoupled:
        grad = grad + o.weight_decay * p
    m = o.beta1 * moments.exp_avg + (1 - o.beta1) * grad
    v = o.beta2 * moments.exp_avg_sq + (1 - o.beta2) * grad**2
    size = o.lr * (1 - o.beta2**o.step) ** 0.5 / (1 - o.beta1**o.step)
    decay = o.lr * o.weight_decay * p if o.decoupled else 0
    return p - decay - size * m / (v.sqrt() + o.eps)


def expected_step(taken: HeadStep, limits: Tensor, kept: Tensor, **options: Any) -> Any:
    """The step in float64, in place on its head: hidden gradient and squares."""
    head, given = taken.head, len(taken.dz)
    grads = taken.dz.t() @ taken.hidden[:given], taken.dz.sum(0)
    weight = by_formula(head.weight, grads[0], head.moments, **options).requires_grad_()
    bias = by_formula(head.bias, grads[1], head.bias_moments, **options).requires_grad_()
    earlier = taken.hidden[given:].clone().requires_grad_()
    residuals = earlier @ weight.t() + bias - kept
    residuals = torch.where(torch.arange(len(weight)) < limits[:, None], residuals, 0.0)
    squares = residuals.square().sum()
    (COEFFICIENT / 2 * squares).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    # Any loss with the summed gradients has the same step.
    of_weight, of_bias = grads[0] + weight.grad, grads[1] + bias.grad
    parameters = [torch.nn.Parameter(p) for p in tensors(head)[:2]]
    o = options_of(**options)
    kind = torch.optim.AdamW if o.decoupled else torch.optim.Adam
    optimizer = kind(
        parameters,
        lr=o.lr,
        betas=(o.beta1, o.beta2),
        eps=o.eps,
        weight_decay=o.weight_decay,
        maximize=o.maximize,
        foreach=False,
    )
    for p, grad, moments in zip(
        parameters, (of_weight, of_bias), (head.moments, head.bias_moments), strict=True
    ):
        assert moments is not None
        p.grad = grad * o.grad_scale
        state = {"step": torch.tensor(o.step - 1.0), **moments._asdict()}
        optimizer.state[p] = state
    optimizer.step()
    return earlier.grad, squares.detach()


def make_step(
    rows: int, width: int, given: int, tasks: int, chunks: int, fewer: int, **options: Any
) -> tuple[HeadStep, Tensor, Tensor]:
    """A step; what each embedding keeps, padded with NaN; and how many numbers it keeps."""
    torch.manual_seed(rows)
    size, count = chunks * rows - fewer, tasks * chunks
    logits = torch.randn(tasks, size, dtype=DOUBLE)
    padded = torch.nn.functional.pad(logits, (0, fewer), value=torch.nan).view(count, rows)
    limits = torch.tensor([rows] * (chunks - 1) + [rows - fewer]).repeat(tasks)
    step = HeadStep(
        make_head(rows, width),
        torch.randn(given, rows, dtype=DOUBLE),
        torch.randn(given + count, width, dtype=DOUBLE),
        KeptChunks(logits, chunks) if chunks > 1 or fewer else logits,
        COEFFICIENT,
        options_of(**options),
        looks_ahead=True,
    )
    return step, padded, limits


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("rows", "width", "given", "tasks", "chunks", "fewer"), SIZES)
def test_a_step_is_autograds_and_torchs(
    backend: str,
    rows: int,
    width: int,
    given: int,
    tasks: int,
    chunks: int,
    fewer: int,
    options: dict[str, Any],
) -> None:
    step, padded, limits = make_step(rows, width, given, tasks, chunks, fewer, **options)
    other = step._replace(head=copied(step.head))
    gradient, squares = expected_step(other, limits, padded, **options)
    found = passes.step_rows(step)
    # Sums of at most 5000 terms in float64, of numbers near 1.
    torch.testing.assert_close(found.hidden[given:], gradient, rtol=1e-9, atol=1e-9)
    assert not found.hidden[:given].any()
    torch.testing.assert_close(found.squares, squares, rtol=1e-10, atol=0)
    for a, b in zip(tensors(step.head), tensors(other.head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_the_same_step_without_the_look_ahead(backend: str) -> None:
    step, padded, limits = make_step(1100, 10, 1, 2, 1, 0)
    whole = step._replace(looks_ahead=False)
    expected = copied(step.head)
    gradient, squares = torch_step(expected, step.dz[0], step.hidden, padded, COEFFICIENT)
    found = passes.step_rows(whole)
    torch.testing.assert_close(found.hidden, gradient)
    torch.testing.assert_close(found.squares, squares)
    for a, b in zip(tensors(whole.head), tensors(expected), strict=True):
        torch.testing.assert_close(a, b)
    assert (limits == 1100).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_look_ahead_is_the_published_one(options: dict[str, Any]) -> None:
    head = make_head(20, 3)
    grad = torch.randn(20, 3, dtype=DOUBLE)
    assert head.moments is not None
    found = shifted(head.weight, grad, head.moments, options_of(**options))
    expected = by_formula(head.weight, grad, head.moments, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": KeptChunks(torch.zeros(2, 30, dtype=DOUBLE), 2)}, "in 2 chunks of 10"),
        ({"kept": KeptChunks(torch.zeros(3, 15, dtype=DOUBLE), 2)}, "for 4 embeddings"),
        ({"bias_grad": torch.zeros(10, dtype=DOUBLE)}, "bias_grad is given"),
        ({"dz": torch.zeros(2, 9, dtype=DOUBLE)}, r"dz has shape \(2, 9\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    step, *_ = make_step(10, 3, 2, 2, 2, 5)
    before = [t.clone() for t in tensors(step.head)]
    with pytest.raises(ValueError, match=message):
        passes.step_rows(step._replace(**changes))
    assert all(map(torch.equal, tensors(step.head), before))


def test_a_head_is_the_same_for_any_number_of_threads() -> None:
    heads: list[Head] = []
    for threads in (1, 3):
        step, *_ = make_step(5000, 10, 2, 3, 2, 5)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            passes.step_rows(step)
        finally:
            torch.set_num_threads(before)
        heads.append(step.head)
    assert all(map(torch.equal, *map(tensors, heads)))
