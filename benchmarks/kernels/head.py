"""Kernel cases of the head of Permuted MNIST, and of the masks of three networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels.case import KernelCase, Output, Problem
from benchmarks.launches.launch import floats
from benchmarks.steps import hypermask_cases
from hypermask_fast import backend
from hypermask_fast.head import cuda, passes
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep, Moments
from hypermask_fast.masks.types import MaskRequest
from hypermask_fast.masks.weights import mask_weights

_LR, _BETA1, _BETA2, _EPS, _STEP = 1e-3, 0.9, 0.999, 1e-8, 10
_COEFFICIENT = 1e-3


class _Step:
    """A step of a head after t others, whose logits are near those that it keeps."""

    def __init__(self, rows: int, width: int, earlier: int) -> None:
        weight, bias = floats(rows, width), floats(rows)
        hidden, dz = floats(earlier + 1, width), floats(rows)
        kept = torch.addmm(bias, hidden[1:], weight.t())
        kept += 0.1 * floats(earlier, rows)
        coefficient = torch.full((), _COEFFICIENT)
        self.moments = Moments(0.1 * floats(rows, width), floats(rows, width, positive=True))
        self.bias_moments = Moments(0.1 * floats(rows), floats(rows, positive=True))
        self.count = torch.full((), float(_STEP))
        self.head = Head(weight, bias, self.moments, self.bias_moments)
        self.weight, self.bias, self.hidden, self.dz = weight, bias, hidden, dz
        self.kept, self.coefficient = kept, coefficient

    def given(self, step: float | Tensor) -> HeadStep:
        """Return the update, the ``step``-th."""
        adam = AdamOptions(_LR, _BETA1, _BETA2, _EPS, 0.0, decoupled=False, step=step)
        return HeadStep(self.head, self.dz[None], self.hidden, self.kept, self.coefficient, adam)

    def changed(self, grad: Tensor, squares: Tensor) -> Output:
        """Return what a step gives and changes, of the large tensors some rows."""
        some = slice(None, None, max(1, len(self.weight) // 1000))
        large = (self.weight, *self.moments, self.bias, *self.bias_moments)
        return (grad, squares, *(t[some] for t in large))

    def logits_kernel(self) -> Output:
        out = self.weight.new_empty(1, len(self.weight))
        cuda.logits(self.head, self.hidden[:1], out)
        return (out,)

    def logits_eager(self) -> Output:
        return (torch.addmv(self.bias, self.weight, self.hidden[0])[None],)

    def step_kernel(self) -> Output:
        return self.changed(*cuda.step_rows(self.given(self.count)))

    def step_eager(self) -> Output:
        with backend("reference"):
            return self.changed(*passes.step_rows(self.given(_STEP)))

    def step_dense(self) -> Output:
        """The gradient as a tensor, and PyTorch's fused Adam."""
        residuals = torch.addmm(self.bias, self.hidden[1:], self.weight.t()) - self.kept
        dz = torch.cat((self.dz[None], self.coefficient * residuals))
        grad, dense = dz @ self.weight, dz.t() @ self.hidden
        exp_avgs, exp_avg_sqs = zip(self.moments, self.bias_moments, strict=True)
        torch._fused_adam_(
            *([self.weight, self.bias], [dense, dz.sum(0)], exp_avgs, exp_avg_sqs),
            *([], [self.count, self.count]),
            lr=_LR,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=0.0,
            eps=_EPS,
            amsgrad=False,
            maximize=False,
        )
        return self.changed(grad, residuals.double().square().sum())

    def step_exact(self) -> Output:
        weight, hidden = self.weight.double(), self.hidden.double()
        residuals = hidden[1:] @ weight.t() + self.bias - self.kept
        dz = torch.cat((self.dz.double()[None], self.coefficient.double() * residuals))
        some = slice(None, None, max(1, len(weight) // 1000))
        results: list[list[Tensor]] = [[], []]
        for kind, (p, (m, v), g) in enumerate(
            (
                (self.weight, self.moments, dz[:, some].t() @ hidden),
                (self.bias, self.bias_moments, dz[:, some].sum(0)),
            )
        ):
            m1 = _BETA1 * m[some].double() + (1 - _BETA1) * g
            v1 = _BETA2 * v[some].double() + (1 - _BETA2) * g * g
            down = (v1 / (1 - _BETA2**_STEP)).sqrt() + _EPS
            p1 = p[some].double() - _LR * m1 / (1 - _BETA1**_STEP) / down
            results[kind] = [p1, m1, v1]
        return (dz @ weight, residuals.square().sum(), *results[0], *results[1])

    def logits_exact(self) -> Output:
        return ((self.weight.double() @ self.hidden[0].double() + self.bias)[None],)


def _logits(rows: int, width: int) -> Problem:
    head = _Step(rows, width, 0)
    return Problem({"kernel": head.logits_kernel, "eager": head.logits_eager}, head.logits_exact)


def _step(rows: int, width: int, earlier: int, with_logits: bool) -> Problem:
    head = _Step(rows, width, earlier)
    if not with_logits:
        runs = {"kernel": head.step_kernel, "dense": head.step_dense, "eager": head.step_eager}
        return Problem(runs, head.step_exact)

    def both(first: Any, second: Any) -> Output:
        return (*first(), *second())

    return Problem(
        {
            "kernel": partial(both, head.logits_kernel, head.step_kernel),
            "dense": partial(both, head.logits_eager, head.step_dense),
            "eager": partial(both, head.logits_eager, head.step_eager),
        },
        partial(both, head.logits_exact, head.step_exact),
    )


def _shapes(name: str, size: str) -> list[torch.Size]:
    """Return the shapes of a network's tensors that have masks."""
    case = hypermask_cases.find_case("gpu", name, size)
    with torch.device("meta"):
        modules = list(case.make_network().modules())
    norm = nn.modules.batchnorm._BatchNorm
    plain = [m for m in modules if not isinstance(m, norm)]
    return [p.shape for m in plain for p in m.parameters(recurse=False)]


def _masks(shapes: list[torch.Size], sparsity: float) -> Problem:
    weights = [floats(*shape) for shape in shapes]
    logits = floats(sum(w.numel() for w in weights))
    previous = torch.cat([w.flatten() for w in weights]) + 0.1 * floats(logits.numel())
    masked = [True] * (len(weights) - 1) + [False]
    grads = [floats(*shape) for shape in shapes[:-1]]
    drift_grad = torch.ones(())

    def kernel() -> Output:
        from hypermask_fast.kernels.masks import select
        from hypermask_fast.kernels.masks import weights as passes

        sizes = [w.numel() for w in weights]
        found = select.thresholds(logits, sizes, sparsity, masked)
        values = None if found is None else found.values
        products, masks, drift = passes.forward(weights, logits, values, masked, previous)
        of_logits, of_weights = passes.backward(
            weights, logits, values, [*grads, None], previous, drift_grad=drift_grad
        )
        kept = [p for p in products if p is not None]
        return (*kept, masks, drift, of_logits, *of_weights)

    def reference(dtype: torch.dtype = torch.float32) -> Output:
        thetas = [w.to(dtype).requires_grad_() for w in weights]
        z = logits.to(dtype).requires_grad_()
        with backend("reference"):
            request = MaskRequest(thetas, z, sparsity, masked, previous.to(dtype))
            products, masks, drift = mask_weights(request)
        upstream = [*(g.to(dtype) for g in grads), drift_grad.to(dtype)]
        of_logits, *of_weights = torch.autograd.grad(
            [*products[:-1], drift], [z, *thetas], upstream
        )
        kept = [p.detach() for p in products[:-1]]
        flat = torch.cat([m.detach().flatten() for m in masks])
        return (*kept, flat, drift.detach(), of_logits, *of_weights)

    exact = partial(reference, torch.float64)
    return Problem({"kernel": kernel, "eager": reference}, exact)


def cases(size: str) -> list[KernelCase]:
    """Return the cases of the head and of masks."""
    rows, width, tasks = (2_036_010, 100, (9, 0, 99)) if size == "full" else (70, 8, (2, 0))
    parameters = rows * width
    found = []
    for t in tasks:
        for name, with_logits, each in (("passes", True, 28), ("step", False, 24)):
            make = partial(_step, rows, width, t, with_logits)
            floor = each * parameters + 4 * t * rows
            variants = ("kernel", "dense", "eager")
            found.append(KernelCase(f"head-{name}-t{t}", make, floor, variants))
    logits = partial(_logits, rows, width)
    floor = 4 * parameters + 8 * rows
    found.append(KernelCase("head-logits", logits, floor, ("kernel", "eager")))
    for name in ("permuted-mnist", "split-mnist", "resnet"):
        shapes = _shapes(f"{name}-t0", size)
        entries = sum(shape.numel() for shape in shapes)
        for p in (0, 30):
            floor = entries * (44 + (12 if p else 0))
            make_masks = partial(_masks, shapes, float(p))
            found.append(KernelCase(f"masks-{name}-p{p}", make_masks, floor, ("kernel", "eager")))
    return found
