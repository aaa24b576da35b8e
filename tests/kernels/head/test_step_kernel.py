"""The passes over a head that end a training step, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.adam_cases import head_bounds, make_head, torch_step
from tests.support.head_cases import PLAIN
from tests.support.kernel_checks import ROUNDINGS, assert_as_exact, error, poisoned, rounding_bound

pytest.importorskip("triton")

from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.device import INTERPRET
from hypermask_fast.kernels.head import adam as factored_adam
from hypermask_fast.kernels.head import step as step_rows
from hypermask_fast.kernels.head import step_products as step_rows_products
from hypermask_fast.kernels.head import step_products_wgmma
from hypermask_fast.kernels.head.adam import adam_scalars
from hypermask_fast.kernels.head.step_runs import step_runs_kernel
from hypermask_fast.reference import output_residuals

COEFFICIENT = 0.25


@pytest.fixture(autouse=True)
def _no_stale_memory() -> Iterator[None]:
    with poisoned():
        yield


def kernel_step(
    head: list[Tensor],
    dz: Tensor,
    hidden: Tensor,
    targets: Tensor,
    *,
    processors: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    return step_rows.step_rows(
        *(*head, dz, hidden, targets),
        coefficient=torch.tensor([COEFFICIENT], device=dz.device),
        scalars=factored_adam.adam_scalars(dz.device, **{**PLAIN, **options}),
        processors=processors,
    )


def first_of_two(
    head: list[Tensor], dz: Tensor, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[dz_0, dz], the hidden gradient and the sum of squares."""
    factors, grad, squares = step_rows_products.residual_sums(
        *(*head[:2], dz, hidden, targets),
        coefficient=torch.tensor([COEFFICIENT], device=dz.device),
        scalars=factored_adam.adam_scalars(dz.device, **PLAIN),
        processors=1,
    )
    return factors[:, : len(dz)], grad, squares


def plain_step(
    head: list[Tensor],
    dz: Tensor,
    hidden: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    **options: Any,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The same step by PyTorch in ``dtype``: parameters and moments, hidden gradient, squares."""
    weight, bias, dz, hidden = (x.to(dtype) for x in (head[0], head[1], dz, hidden))
    residuals = hidden[1:] @ weight.t() + bias - targets.to(dtype)
    factors = torch.cat([dz[None], COEFFICIENT * residuals])
    squares = residuals.square().sum()
    return torch_step(head, factors, hidden, dtype, **options), factors @ weight, squares


def factors_of(
    head: list[Tensor], dz: Tensor, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """[dz_0, dz] in float64, and the sums of the magnitudes of their terms."""
    a, b, dz, hidden, targets = (t.double() for t in (*head[:2], dz, hidden[1:], targets))
    residuals = hidden @ a.t() + b - targets
    sizes = hidden.abs() @ a.abs().t() + b.abs() + targets.abs()
    return (
        torch.cat([dz[None], COEFFICIENT * residuals]),
        torch.cat([dz[None].abs(), COEFFICIENT * sizes]),
    )


def assert_step(
    head: list[Tensor], dz: Tensor, hidden: Tensor, targets: Tensor, **options: Any
) -> None:
    exact = plain_step(head, dz, hidden, targets, torch.float64, **options)
    factors, sizes = factors_of(head, dz, hidden, targets)
    rows, width = head[0].shape
    # Of a residual: its product, bias and target; and what rounds a term.
    terms = width + 2 + ROUNDINGS
    bounds = head_bounds(head, exact[0], factors, hidden, sizes, terms, **options)
    bound = rounding_bound(sizes @ head[0].double().abs(), rows + terms)
    dtypes = [tensor.dtype for tensor in head]
    grad, squares = kernel_step(head, dz, hidden, targets, **options)
    assert_as_exact(grad, exact[1], bound)
    assert squares.dtype == torch.float64
    assert float(squares) == pytest.approx(float(exact[2]), rel=1e-5, abs=0)
    for found, double, allowed, dtype in zip(head, exact[0], bounds, dtypes, strict=True):
        assert_as_exact(found, double, allowed, dtype)


def make_inputs(
    head: list[Tensor], earlier: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """dz, hidden, and targets that no logit rounds to."""
    (rows, width), device = head[0].shape, head[0].device
    hidden = torch.randn(earlier + 1, width, device=device)
    logits = hidden[1:] @ head[0].t() + head[1]
    targets = logits + torch.randn_like(logits).sign() * (0.5 + torch.rand_like(logits))
    return torch.randn(rows, device=device), hidden, targets.to(dtype)


SIZES = [
    pytest.param(1, 1, 0, id="1x1-t0"),
    pytest.param(7, 3, 1, id="7x3-t1"),
    pytest.param(70, 25, 0, id="70x25-t0"),
    pytest.param(70, 25, 4, id="70x25-t4"),
    pytest.param(50, 100, 9, id="50x100-t9"),
    pytest.param(33, 131, 15, id="33x131-t15"),
    pytest.param(3, 1, 16, id="3x1-t16"),
    pytest.param(33, 100, 16, id="33x100-t16"),
    pytest.param(65, 49, 17, id="65x49-t17"),
    pytest.param(40, 25, 40, id="40x25-t40"),
    pytest.param(35, 100, 99, id="35x100-t99"),
    pytest.param(9, 128, 130, id="9x128-t130"),
    pytest.param(20, 131, 16, id="20x131-t16"),
    pytest.param(20, 300, 0, id="20x300-t0"),
    pytest.param(20, 300, 3, id="20x300-t3"),
]


@pytest.mark.parametrize(("rows", "width", "earlier"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step(
    device: torch.device, rows: int, width: int, earlier: int, dtype: torch.dtype
) -> None:
    """Targets and moments of ``dtype``."""
    head = make_head(rows, width, device, dtype)
    assert_step(head, *make_inputs(head, earlier, dtype))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"weight_decay": 0.1}, id="coupled"),
        pytest.param({"weight_decay": 0.1, "decoupled": True, "grad_scale": 0.5}, id="decoupled"),
        pytest.param({"maximize": True}, id="maximize"),
    ],
)
def test_options(device: torch.device, options: dict[str, Any]) -> None:
    head = make_head(40, 9, device)
    assert_step(head, *make_inputs(head, 3), **options)


@pytest.mark.parametrize("config", step_rows.CONFIGS, ids=str)
def test_programs_take_several_tiles(device: torch.device, config: dict[str, int]) -> None:
    head = make_head(3 * config["BLOCK_N"] + 5, 70, device)
    with tuning.forced("step_rows", {**config, "PROGRAMS": 2}):
        assert_step(head, *make_inputs(head, 2))


@pytest.mark.parametrize(
    ("kernel", "earlier", "config"),
    [("step_rows_products", 16, config) for config in step_rows_products.CONFIGS]
    + [("step_rows_wgmma", 33, config) for config in step_products_wgmma.CONFIGS],
    ids=str,
)
def test_programs_of_products_take_several_tiles(
    device: torch.device, kernel: str, earlier: int, config: dict[str, int]
) -> None:
    head = make_head(3 * config["BLOCK_N"] + 5, 40, device)
    dz, hidden, targets = make_inputs(head, earlier)
    with tuning.forced(kernel, {**config, "PROGRAMS": 2}):
        found = first_of_two(head, dz, hidden, targets)
    factors, sizes = factors_of(head, dz, hidden, targets)
    assert torch.equal(found[0][0], dz)
    assert_as_exact(found[0][1:], factors[1:], rounding_bound(sizes[1:], 42))
    _, exact, squares = plain_step(head, dz, hidden, targets, torch.float64)
    bound = rounding_bound(sizes @ head[0].double().abs(), len(dz) + 42 + ROUNDINGS)
    assert_as_exact(found[1], exact, bound)
    assert float(found[2]) == pytest.approx(float(squares), rel=1e-6)


@pytest.mark.parametrize("earlier", [3, 17, 70])
def test_processors_only_change_the_order_of_sums(device: torch.device, earlier: int) -> None:
    heads = [make_head(150, 20, device)]
    heads += [[tensor.clone() for tensor in heads[0]] for _ in range(2)]
    dz, hidden, targets = make_inputs(heads[0], earlier)
    _, exact, squares = plain_step(heads[0], dz, hidden, targets, torch.float64)
    results = [
        kernel_step(head, dz, hidden, targets, processors=processors)
        for head, processors in zip(heads, (1, 3, 3), strict=True)
    ]
    for grad, total in results:
        assert error(grad, exact) < 1e-6
        assert float(total) == pytest.approx(float(squares), rel=1e-6)
    assert all(map(torch.equal, *results[1:]))
    assert all(map(torch.equal, heads[0], heads[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("width", "earlier"),
    [
        pytest.param(25, 1, id="25-t1"),
        pytest.param(100, 9, id="100-t9"),
        pytest.param(33, 16, id="33-t16"),
        pytest.param(1, 17, id="1-t17"),
        pytest.param(100, 99, id="100-t99"),
        pytest.param(131, 16, id="131-t16"),
        pytest.param(300, 2, id="300-t2"),
    ],
)
def test_unchanged_head_leaves_no_residual(
    device: torch.device, width: int, earlier: int, dtype: torch.dtype
) -> None:
    head = make_head(50, width, device)
    hidden = torch.randn(earlier + 1, width, device=device)
    targets = step_rows.earlier_logits(*head[:2], hidden[1:], dtype=dtype)
    a, b, h = head[0].double(), head[1].double(), hidden[1:].double()
    bound = rounding_bound(h.abs() @ a.abs().t() + b.abs(), width + 1)
    assert_as_exact(targets, h @ a.t() + b, bound, dtype)
    dz = torch.randn(50, device=device)
    weight = head[0].clone()
    grad, squares = kernel_step(head, dz, hidden, targets)
    assert float(squares) == 0
    assert not grad[1:].any()
    dz, weight = dz.double(), weight.double()
    assert_as_exact(grad[0], dz @ weight, rounding_bound(dz.abs() @ weight.abs(), 50))


def test_small_changes_leave_residuals_in_bfloat16(device: torch.device) -> None:
    """A target that a logit no longer rounds to counts in full, as in the specification."""
    head = make_head(30, 9, device)
    hidden = torch.randn(4, 9, device=device)
    targets = step_rows.earlier_logits(*head[:2], hidden[1:], dtype=torch.bfloat16)
    head[1] += 1e-3
    logits = step_rows.earlier_logits(*head[:2], hidden[1:])
    residuals = output_residuals(logits, targets).double()
    assert residuals.count_nonzero() not in (0, residuals.numel())
    _, squares = kernel_step(head, torch.randn(30, device=device), hidden, targets)
    assert float(squares) == pytest.approx(float(residuals.square().sum()), rel=1e-5)


@pytest.mark.parametrize("earlier", [0, 2, 16, 70])
def test_skipped_step_changes_nothing(device: torch.device, earlier: int) -> None:
    """As with a gradient of 0: the hidden gradient is that of the regularizer alone."""
    head = make_head(20, 9, device)
    before = [tensor.clone() for tensor in head]
    dz, hidden, targets = make_inputs(head, earlier)
    _, exact, squares = plain_step(head, torch.zeros_like(dz), hidden, targets, torch.float64)
    grad, found = kernel_step(
        *(head, dz.fill_(torch.nan), hidden, targets),
        step=torch.zeros((), device=device),
        finite=torch.tensor(False, device=device),
    )
    assert all(map(torch.equal, head, before))
    assert not grad[0].any()
    assert error(grad, exact) < 1e-6
    assert float(found) == pytest.approx(float(squares), rel=1e-5)


@pytest.mark.parametrize(
    ("earlier", "stride"),
    [
        pytest.param(2, 2**31 + 16, id="one-pass"),
        pytest.param(17, 2**27 + 16, id="two-passes"),
    ],
)
def test_targets_lie_far_apart(device: torch.device, earlier: int, stride: int) -> None:
    """More than 2^31 elements, of memory that is never touched between them."""
    head = make_head(5, 4, device)
    dz, hidden, targets = make_inputs(head, earlier)
    apart = torch.empty_strided((earlier, 5), (stride, 1), device=device).copy_(targets)
    near = [tensor.clone() for tensor in head]
    results = kernel_step(head, dz, hidden, apart), kernel_step(near, dz, hidden, targets)
    assert all(map(torch.equal, *results))
    assert all(map(torch.equal, head, near))


def test_no_rows(device: torch.device) -> None:
    head = make_head(0, 4, device)
    grad, squares = kernel_step(head, *make_inputs(head, 2))
    assert torch.equal(grad, torch.zeros(3, 4, device=device))
    assert float(squares) == 0


@pytest.mark.skipif(not INTERPRET.value, reason="such a head takes 30 GB")
def test_a_tile_of_a_head_of_more_than_2_31_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of 64 rows, where as many programs as the head has tiles are said to run."""
    from triton.runtime.interpreter import interpreter_builder

    width, block, rows = 25, 64, 10**8
    cpu = torch.device("cpu")
    start = make_head(block, width, cpu)
    near, far = ([tensor.clone() for tensor in start] for _ in range(2))
    dz, hidden, targets = torch.randn(block), torch.randn(1, width), torch.zeros(0, block)
    scalars = adam_scalars(cpu, **{**PLAIN, "step": 1})
    set_grid = interpreter_builder.set_grid_dim
    for head, count in ((near, block), (far, rows)):
        programs = -(-count // block)
        monkeypatch.setattr(
            interpreter_builder, "set_grid_dim", lambda x, y, z, n=programs: set_grid(n, 1, 1)
        )
        sums = torch.zeros(1, 1, width), torch.zeros(1)
        options = {"WRITE_LOGITS": False, "WIDTH": width, "BLOCK_N": block}
        inputs = dz, hidden, targets, torch.tensor(0.1), scalars
        step_runs_kernel[1,](*head, *inputs, *sums, count, 0, 0, **options)
    assert all(map(torch.equal, near, far))
    assert (near[0] != start[0]).any(1).all()


def test_fifty_steps_are_as_exact_as_torch(device: torch.device) -> None:
    start = make_head(16, 20, device)
    head, plain, exact = ([tensor.clone() for tensor in start] for _ in range(3))
    hidden = torch.randn(3, 20, device=device)
    targets = step_rows.earlier_logits(*head[:2], hidden[1:])
    for step in range(1, 51):
        dz = torch.randn(16, device=device)
        kernel_step(head, dz, hidden, targets, step=step, lr=1e-3)
        plain, _, _ = plain_step(plain, dz, hidden, targets, torch.float32, step=step, lr=1e-3)
        exact, _, _ = plain_step(exact, dz, hidden, targets, torch.float64, step=step, lr=1e-3)
    for found, single, double in zip(head, plain, exact, strict=True):
        assert error(found, double) <= 2 * error(single, double)


@pytest.mark.parametrize("earlier", [17, 40])
def test_products_are_as_exact_as_a_rounding(device: torch.device, earlier: int) -> None:
    """Sums of one term show each part of a product: of bfloat16's thirds and of tf32's halves."""
    head = make_head(20, 35, device)
    hidden = torch.zeros(earlier, 35, device=device)
    hidden[:, 3] = torch.randn(earlier, device=device)
    logits = step_rows.earlier_logits(head[0], torch.zeros_like(head[1]), hidden)
    exact = hidden.double() @ head[0].double().t()
    # Thirds leave out 2^-22 of a term and halves 2^-19.7, where the matrix core cuts off the rest.
    allowed = 2**-22 if earlier > 32 else 2**-19
    assert ((logits - exact).abs() <= (allowed + 2**-22) * exact.abs()).all()
