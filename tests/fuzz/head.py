"""Cases of the kernels of a hypernetwork's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.head import ahead as in_pytorch
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep, Moments
from hypermask_fast.kernels import plain
from hypermask_fast.kernels.head import adam as factored_adam
from hypermask_fast.kernels.head import adam_wgmma as factored_adam_wgmma
from hypermask_fast.kernels.head import ahead as step_ahead
from hypermask_fast.kernels.head import hidden_grad as gradients
from hypermask_fast.kernels.head import logits as mask_logits
from hypermask_fast.kernels.head import row_tiles
from hypermask_fast.kernels.head import step as step_rows
from hypermask_fast.kernels.head import step_products as step_rows_products
from hypermask_fast.kernels.head import step_products_wgmma as step_rows_wgmma
from hypermask_fast.kernels.head import step_runs as step_rows_runs
from tests.fuzz.case import (
    BRAIN,
    DEVICE,
    FLOAT,
    GRADIENTS,
    Case,
    any_config,
    check,
    judge,
)
from tests.support.adam_cases import adam_bounds
from tests.support.kernel_checks import ROUNDINGS, assert_as_exact, rounding_bound

DENSE = ("contiguous", "unaligned")
COUNTS = (1, 1, 2, 3, 5, 12, 15, 16, 17, 33)


LOGITS = {f"mask_logits_{name}": configs for name, configs in mask_logits.CONFIGS.items()}
GRADS = {f"mask_logits_{name}_grad": configs for name, configs in gradients.CONFIGS.items()}


def logits(weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    return reference.mask_logits(weight, bias, hidden)


def fuzz_mask_logits(case: Case) -> None:
    rows, width = case.size("rows", 300, empty=0.03), case.size("width", 131)
    count = case.one("count", (*COUNTS, 127, 129))
    weight, bias = case.normals("A", rows, width), case.normals("b", rows)
    hidden = case.normals("hidden", count, width)
    out = None
    if case.often("out is given"):
        layouts = (*DENSE, "sliced")
        out = case.place("out", torch.full((count, rows), torch.inf), layouts=layouts)
    with any_config(case, LOGITS):
        found = mask_logits.mask_logits(weight, bias, hidden, out)
    assert out is None or found is out
    check(logits, found, weight=weight, bias=bias, hidden=hidden)


def fuzz_hidden_grad(case: Case) -> None:
    rows = case.size("rows", 300, empty=0.03) * case.one("times", (1, 1, 5))
    width, count = case.size("width", 131), case.one("count", (*COUNTS, 129))
    weight = case.normals("A", rows, width)
    dz = case.normals("dz", count, rows, layouts=GRADIENTS)
    with any_config(case, GRADS):
        found = gradients.hidden_grad(weight, dz)
    check(plain.hidden_grad, found, weight=weight, dz=dz)


def some_options(case: Case) -> dict[str, Any]:
    return {
        "lr": case.one("lr", (1e-4, 1e-3, 0.1)),
        "beta1": case.one("beta1", (0.0, 0.9, 0.95)),
        "beta2": case.one("beta2", (0.5, 0.99, 0.999)),
        "eps": case.one("eps", (1e-8, 1e-3)),
        "weight_decay": case.one("weight decay", (0.0, 0.0, 0.1)),
        "decoupled": case.often("decoupled"),
        "step": case.one("step", (1, 2, 7, 1000)),
        "grad_scale": case.one("scale", (1.0, 1.0, 0.125, 3.0)),
        "maximize": case.often("maximize", 0.2),
    }


def some_scalars(case: Case, options: dict[str, Any], taken: bool) -> Tensor:
    """The kernel's scalars, from numbers or tensors."""
    given = dict(options)
    if case.often("tensors of numbers"):
        for name in ("lr", "step", "grad_scale"):
            given[name] = torch.tensor(options[name], dtype=torch.float64, device=DEVICE)
    finite = None if taken and case.often("no flag") else torch.tensor(taken, device=DEVICE)
    return factored_adam.adam_scalars(DEVICE, **given, finite=finite)


def adam_configs() -> dict[str, Sequence[Any]]:
    kinds = factored_adam.CONFIGS | {"wgmma": factored_adam_wgmma.CONFIGS}
    return {f"factored_adam_{kind}": configs for kind, configs in kinds.items()}


def some_state(
    case: Case, name: str, *shape: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter and its moments."""
    first = case.often(f"{name} has no history", 0.3)
    values = (case.normal(*shape) * (not first), case.normal(*shape).square() * (not first))
    first_moment, second_moment = (
        case.place(f"{name} moment {i}", v, dtype, layouts=DENSE) for i, v in enumerate(values)
    )
    return case.normals(name, *shape, layouts=DENSE), first_moment, second_moment


def adam(state: Sequence[Tensor], grad: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """A step of torch's own, in the dtype of the gradient."""
    parameter = torch.nn.Parameter(state[0].to(grad.dtype, copy=True))
    parameter.grad = grad * options["grad_scale"]
    kind = torch.optim.AdamW if options["decoupled"] else torch.optim.Adam
    names = ("lr", "eps", "weight_decay", "maximize")
    betas = (options["beta1"], options["beta2"])
    optimizer = kind([parameter], betas=betas, **{name: options[name] for name in names})
    moments = [m.to(grad.dtype, copy=True) for m in state[1:]]
    optimizer.state[parameter] = {
        "step": torch.tensor(options["step"] - 1.0),
        **dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True)),
    }
    optimizer.step()
    return [parameter.detach(), *moments]


def judge_adam(
    found: Sequence[Tensor],
    before: Sequence[Tensor],
    grads: Sequence[Tensor],
    terms: int,
    options: dict[str, Any],
) -> None:
    """Judge a step by torch's; ``grads``: in float64, and the sums of the magnitudes of terms."""
    grad, size = grads
    exact = adam(before, grad, options)
    bounds = adam_bounds(before, exact, grad, rounding_bound(size, terms), size, options)
    for mine, right, bound in zip(found, exact, bounds, strict=True):
        assert_as_exact(mine, right, bound, mine.dtype)


def magnitudes(*tensors: Tensor) -> list[Tensor]:
    return [t.double().abs() for t in tensors]


def fuzz_factored_adam(case: Case) -> None:
    rows, width = case.size("rows", 131, empty=0.03), case.size("width", 131)
    count, dtype = case.one("factors", (*COUNTS, 40)), case.one("moments", (FLOAT, FLOAT, BRAIN))
    head = some_state(case, "A", rows, width, dtype=dtype)
    bias = some_state(case, "b", rows, dtype=dtype) if case.often("bias") else ()
    dz = case.normals("dz", count, rows, layouts=GRADIENTS)
    hidden = case.normals("hidden", count, width)
    options, taken = some_options(case), case.often("taken", 0.9)
    before = [t.clone() for t in (*head, *bias)]
    names = ("bias", "bias_exp_avg", "bias_exp_avg_sq")
    with any_config(case, adam_configs()):
        scalars = some_scalars(case, options, taken)
        given = dict(zip(names, bias, strict=True)) if bias else {}
        factored_adam.factored_adam(*head, dz, hidden, scalars, **given)
    factors = ((dz.double(), hidden.double()), magnitudes(dz, hidden))
    if not taken:
        assert all(map(torch.equal, (*head, *bias), before)), "a skipped step changed something"
    elif rows:
        judge_adam(head, before[:3], [d.T @ h for d, h in factors], count, options)
        if bias:
            judge_adam(bias, before[3:], [d.sum(0) for d, _ in factors], count, options)


def step_gradients(
    weight: Tensor,
    bias: Tensor,
    dz: Tensor,
    hidden: Tensor,
    targets: Tensor | None,
    coefficient: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients to ``hidden``, A and b, and the sum of squares; no targets: no residuals."""
    z = logits(weight, bias, hidden[1:])
    residual = z - (z if targets is None else targets)
    factors = torch.cat((dz[None], coefficient * residual))
    total = residual.square().sum()
    return factors @ weight, factors.T @ hidden, factors.sum(0), total


def fuzz_step_rows(case: Case) -> None:
    rows, earlier = (
        case.size("rows", 131, empty=0.03),
        case.one("earlier", (0, 1, 2, 5, 15, 16, 33, 70)),
    )
    width = case.size("width", 300 if earlier < 3 else 140)
    dtype = case.one("moments", (FLOAT, FLOAT, BRAIN))
    head, bias = (
        some_state(case, n, rows, *s, dtype=dtype) for n, s in (("A", (width,)), ("b", ()))
    )
    hidden = case.normals("hidden", earlier + 1, width)
    dz = case.normals("dz", rows, layouts=DENSE)
    coefficient = torch.tensor(case.one("coefficient", (0.02, 1.0)), device=DEVICE)
    options, taken = some_options(case), case.often("taken", 0.9)
    dtype, unchanged = case.one("targets", (FLOAT, BRAIN)), case.often("unchanged", 0.3)
    # So far away that no logit rounds to its target.
    far = logits(head[0], bias[0], hidden[1:]).cpu()
    far = far + (0.3 + 0.1 * far.abs()) * case.normal(*far.shape).sign()
    targets = case.place("targets", far, dtype, layouts=(*DENSE, "sliced", "transposed"))
    processors = case.one("processors", (1, 1, 2, 5))
    before = [t.clone() for t in (*head, *bias)]
    if not taken:
        dz[:1] = torch.nan
    configs = adam_configs() | LOGITS | GRADS
    configs["step_rows"] = step_rows.CONFIGS
    configs["step_rows_runs"] = step_rows_runs.CONFIGS
    configs["step_rows_products"] = step_rows_products.CONFIGS
    configs["step_rows_wgmma"] = step_rows_wgmma.CONFIGS
    with any_config(case, configs):
        if unchanged:
            targets = step_rows.earlier_logits(
                head[0], bias[0], hidden[1:], dtype=dtype, processors=processors
            )
        scalars = some_scalars(case, options, taken)
        grad, total = step_rows.step_rows(
            *(head[0], bias[0], *head[1:], *bias[1:], dz, hidden, targets),
            coefficient=coefficient,
            scalars=scalars,
            processors=processors,
        )
    inputs = (before[0], before[3], dz if taken else torch.zeros_like(dz), hidden)
    goals = None if unchanged else targets

    def gradients(change: Callable[[Tensor], Tensor], sign: int = 1) -> tuple[Tensor, ...]:
        ends = None if goals is None else sign * change(goals)
        a, b, d, h = map(change, inputs)
        return step_gradients(a, b, d, h, ends, change(coefficient))

    exact = gradients(Tensor.double)
    # Of a difference, the sum of the magnitudes.
    sizes = gradients(lambda t: t.double().abs(), sign=-1)
    if unchanged:
        assert total == 0, f"residuals of {float(total)} where nothing changed"
    # Of a residual: its product, bias and target; and what rounds a term.
    terms = width + 2 + ROUNDINGS
    judge(grad, exact[0], sizes[0], rows + terms)
    judge(total.float(), exact[3], sizes[3], rows * earlier + 2 * terms)
    if not taken:
        assert all(map(torch.equal, (*head, *bias), before)), "a skipped step changed something"
    elif rows:
        for state, i in ((head, 0), (bias, 1)):
            grads = [exact[1 + i], sizes[1 + i]]
            judge_adam(state, before[3 * i : 3 * i + 3], grads, earlier + 1 + terms, options)


def fuzz_step_ahead(case: Case) -> None:
    """Against the same step in PyTorch and float64, which its tests hold against autograd's."""
    rows, earlier = case.size("rows", 131, empty=0.03), case.one("earlier", (0, 1, 2, 5, 15))
    width = case.size("width", row_tiles.WIDEST if earlier < 3 else 140)
    dtype = case.one("moments", (FLOAT, FLOAT, BRAIN))
    head, bias = (
        some_state(case, n, rows, *s, dtype=dtype) for n, s in (("A", (width,)), ("b", ()))
    )
    hidden = case.normals("hidden", earlier + 1, width)
    dz = case.normals("dz", rows, layouts=DENSE)
    coefficient = torch.tensor(case.one("coefficient", (0.02, 1.0)), device=DEVICE)
    # An eps that small gradients are not divided by: their roundings would be all that is left.
    options = {**some_options(case), "eps": 1e-2, "lr": 1e-3}
    far = logits(head[0], bias[0], hidden[1:]).cpu()
    far = far + (3 + 0.1 * far.abs()) * case.normal(*far.shape).sign()
    if case.often("some are free", 0.4):
        far[:, ::3] = torch.nan
    targets = case.place(
        "targets", far, case.one("targets", (FLOAT, BRAIN)), layouts=(*DENSE, "sliced")
    )
    parts = (head[0], bias[0], *head[1:], *bias[1:])
    a, b, *moments = (t.double().clone() for t in parts)
    whole = Head(a, b, Moments(*moments[:2]), Moments(*moments[2:]))
    given = dz.double()[None], hidden.double(), targets.double()
    exact = in_pytorch.step_rows(
        HeadStep(whole, *given, float(coefficient), AdamOptions(**options), looks_ahead=True)
    )
    with any_config(case, {"step_ahead": step_ahead.CONFIGS}):
        grad, total = step_ahead.step_ahead(
            *(*parts, dz, hidden, targets),
            eps=options["eps"],
            coefficient=coefficient,
            scalars=some_scalars(case, options, taken=True),
            processors=case.one("processors", (1, 1, 2, 5)),
        )
    size = exact.hidden.abs().max() if exact.hidden.numel() else torch.tensor(0.0)
    terms = (rows + width + 2 + ROUNDINGS) * torch.finfo(FLOAT).eps
    assert_as_exact(grad, exact.hidden, (terms * (1 + size)).expand_as(exact.hidden))
    assert_as_exact(total.float(), exact.squares, terms * (1 + exact.squares))
    for found, right in zip(parts, (a, b, *moments), strict=True):
        # A gradient has terms of this size at most, and moves a moment by no more than itself.
        bound = (terms * (1 + right.abs()) * 64).expand_as(right)
        assert_as_exact(found, right, bound, found.dtype)


KERNELS = {
    "mask_logits": fuzz_mask_logits,
    "hidden_grad": fuzz_hidden_grad,
    "factored_adam": fuzz_factored_adam,
    "step_rows": fuzz_step_rows,
    "step_ahead": fuzz_step_ahead,
}
