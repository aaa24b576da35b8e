"""Cases of the kernels that a step launches beside those of head, masks and layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.kernels import finite, losses
from hypermask_fast.kernels.head import finish as ends
from hypermask_fast.kernels.head.begin import begin
from hypermask_fast.kernels.hypernetworks import trunk
from hypermask_fast.kernels.optim.rows import adam_rows
from hypermask_fast.kernels.scenarios import gather
from hypermask_fast.kernels.selfcheck.rounded import EPS, Rounded, exact, matmul, number
from hypermask_fast.scenarios.preprocess import Preprocess
from tests.fuzz.case import DEVICE, FLOAT, Case, any_config
from tests.fuzz.head import DENSE, adam, some_options, some_state
from tests.support.adam_cases import adam_bounds
from tests.support.kernel_checks import assert_as_exact

NOT_FINITE = (torch.nan, torch.inf, -torch.inf)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


def spoil(case: Case, name: str, values: Tensor, share: float = 0.3) -> Tensor:
    """Make one number of some tensors NaN or infinite."""
    values = values.clone()
    if values.numel() and case.often(f"{name} is not finite", share):
        place = case.one(f"{name} is not finite at", range(values.numel()))
        values.view(-1)[place] = case.one(f"{name} has", NOT_FINITE)
    return values


def assert_near(found: Tensor, right: Tensor, bound: Tensor, dtype: torch.dtype = FLOAT) -> None:
    """Judge numbers that may not be finite: those have to be what they are, too."""
    found, known = found.cpu(), right.isfinite()
    assert torch.equal(found.isnan(), right.isnan()), "NaN is elsewhere"
    infinite = ~known & ~right.isnan()
    assert torch.equal(found[infinite].double(), right[infinite]), "other infinities"
    assert_as_exact(found[known], right[known], bound.expand(right.shape)[known], dtype)


def whole(case: Case, name: str, low: int, high: int, *shape: int) -> Tensor:
    """Integers from low up to below high, int64, in a dense tensor."""
    values = torch.tensor(
        [case.draw(low, high) for _ in range(torch.Size(shape).numel())], dtype=torch.int64
    )
    return case.place(name, values.view(shape), torch.int64, layouts=DENSE)


def fuzz_batch(case: Case) -> None:
    """Against what makes batches in PyTorch."""
    channels, images = case.one("channels", (1, 1, 2, 3)), case.one("images", (1, 2, 7))
    height, width = case.one("height", (1, 2, 5, 8, 13)), case.one("width", (1, 3, 8, 17))
    pad, crop = case.one("pad", (0, 0, 1, 3)), case.one("crop", (0, 0, 1, 4))
    flip, size = case.often("flip"), case.one("size", (1, 2, 5, 16))
    shape = (channels, height + 2 * pad, width + 2 * pad)
    area = torch.Size(shape).numel()
    tables: dict[str, Any] = {}
    if case.often("permuted"):
        order = torch.tensor(sorted(range(area), key=lambda _: case.draw(0, 2**40)))
        layouts = (*DENSE, "every second")
        tables["permutation"] = case.place("order", order, torch.int64, layouts=layouts)
    if case.often("moved", 0.3):
        tables["source"] = whole(case, "source", -1, area, area)
    options: dict[str, Any] = {"pad": pad, "crop": crop}
    scale: dict[str, Any] = {}
    if case.often("normalised"):
        count = case.one("means", (1, channels))
        scale = {
            "mean": [case.draw(-100, 200) / 100 for _ in range(count)],
            "std": [case.draw(1, 200) / 100 for _ in range(count)],
        }
    made = Preprocess(**options, **tables, **scale, flip=flip)
    pixels = whole(case, "pixels", 0, 256, images, channels, height, width).to(torch.uint8)
    pixels = case.place("bytes", pixels, torch.uint8, layouts=DENSE)
    positions = case.one("positions", (1, 3, 10, 33))
    columns = [whole(case, "example", 0, images, positions)]
    columns += [whole(case, "label", 0, 10, positions)]
    if made.random:
        columns += [whole(case, n, 0, 2 * crop + 1, positions) for n in ("top", "left")]
        columns += [whole(case, "mirrored", 0, 1 + flip, positions)]
    table = case.place("table", torch.stack(columns, 1), torch.int64, layouts=DENSE)
    first = case.one("number", (0, 1, 7, 2**33))
    kind = case.one("number is", ("int", torch.int64, torch.int64))
    given = first if kind == "int" else torch.tensor(first, dtype=kind, device=DEVICE)
    tables["mean"], tables["std"] = (
        None if t is None else t.to(DEVICE) for t in (made.mean, made.std)
    )
    with any_config(case, {"batch": gather.CONFIGS}):
        x, labels = gather.batch(pixels, table, given, size, **options, **tables)
    rows = table.cpu()[(first * size + torch.arange(size)) % positions]
    right = made.to("cpu")(pixels.cpu()[rows[:, 0]], rows[:, 2:] if made.random else None)
    assert torch.equal(labels.cpu(), rows[:, 1]), "other labels"
    # On a CPU PyTorch divides by 255, and on a GPU multiplies by its inverse: two roundings of it.
    off = 2 * EPS * torch.ones(()) if made.std is None else 2 * EPS / made.std.double()
    assert_near(x, right.double(), (off + EPS * right.double().abs()).expand(right.shape))


def some_ids(case: Case, rows: int, capacity: int, outside: bool) -> Tensor:
    """Rows of a table, of which some are repeated; or that it does not have."""
    ids = torch.tensor([case.draw(0, capacity) for _ in range(rows)], dtype=torch.int64)
    if rows and outside and case.often("an id has no row", 0.3):
        ids[-1] = case.one("that id", (-1, capacity, capacity + 5))
    return case.place("ids", ids, case.one("ids are", (torch.int64, torch.int32)), layouts=DENSE)


def fuzz_trunk(case: Case) -> None:
    width, source = case.size("width", 100), case.size("source", 131)
    rows, capacity = case.one("rows", (0, 1, 2, 5, 9)), case.one("capacity", (1, 2, 6, 17))
    activation = case.one("activation", trunk.ACTIVATIONS)
    has_ids = case.often("ids")
    count = capacity if has_ids else rows
    x = case.place("x", spoil(case, "x", case.normal(count, source)), layouts=DENSE)
    ids = some_ids(case, rows, capacity, outside=True) if has_ids else None
    weight = case.normals("W", width, source, layouts=DENSE)
    bias = case.normals("b", width, layouts=DENSE)
    with any_config(case, {}):
        y = trunk.forward(x, ids, weight, bias, activation)
    named = torch.arange(rows) if ids is None else ids.long().cpu()
    there = (named >= 0) & (named < count)
    assert y[~there.to(DEVICE)].isnan().all(), "an id without a row has numbers"
    inputs = x.cpu()[named[there]]
    z = matmul(exact(inputs), exact(weight).transposed()).plus(exact(bias))
    # No slope is above 1; a function is off by a few roundings of 1.
    bound = (z.error + 8 * EPS).nan_to_num(0.0, posinf=0.0)
    assert_near(y[there.to(DEVICE)], FUNCTIONS[activation](z.value), bound)


def fuzz_trunk_backward(case: Case) -> None:
    width, source = case.size("width", 100), case.size("source", 131)
    rows, capacity = case.one("rows", (1, 2, 5, 9)), case.one("capacity", (1, 2, 6, 17))
    activation, has_ids = case.one("activation", trunk.ACTIVATIONS), case.often("ids")
    count, of_x = capacity if has_ids else rows, case.often("dx", 0.8)
    x = case.normals("x", count, source, layouts=DENSE)
    ids = some_ids(case, rows, capacity, outside=False) if has_ids else None
    weight = case.normals("W", width, source, layouts=DENSE)
    y = case.place("y", FUNCTIONS[activation](2 * case.normal(rows, width)), layouts=DENSE)
    spoilt = spoil(case, "dy", case.normal(rows, width), 0.2)
    grad = case.place("dy", spoilt, layouts=DENSE)
    with any_config(case, {}):
        found = trunk.backward(x, ids, weight, y, grad, activation, of_x)
    out, one = exact(y), number(1.0)
    slope = one.minus(out.times(out))
    if activation != "tanh":
        above = out.value > 0
        below = out.plus(one) if activation == "elu" else out.where(out.value > out.value)
        slope = Rounded(torch.where(above, 1, below.value), below.where(~above).error)
    named = torch.arange(rows) if ids is None else ids.long().cpu()
    finite_rows = spoilt.isfinite().all(1)
    of_rows = F.one_hot(named, count).double()
    if finite_rows.all():
        a = exact(grad).times(slope)
        chosen = exact(of_rows)
        right = (
            matmul(chosen.transposed(), matmul(a, exact(weight))),
            matmul(a.transposed(), matmul(chosen, exact(x))),
            a.sum(0),
        )
        for mine, (value, error) in zip(found, right, strict=True):
            if mine is not None:
                assert_as_exact(mine.cpu(), value, error)
    elif of_x and found[0] is not None:
        # What is not finite reaches its own rows only.
        reached = of_rows[~finite_rows].sum(0) > 0
        assert found[0].cpu()[~reached].isfinite().all(), "a row has another's gradient"
    assert (found[0] is None) == (not of_x)


def fuzz_adam_rows(case: Case) -> None:
    rows, width = case.size("rows", 33, empty=0.05), case.size("width", 300, empty=0.03)
    width *= case.one("times", (1, 1, 1, 9))
    shape = case.one("shape", ((rows, width), (rows, width), (rows,), (rows, 2, width)))
    state = some_state(case, "table", *shape, dtype=FLOAT)
    grad = case.normal(*shape)
    stays = torch.tensor([case.draw(0, 2) for _ in range(rows)]) == 0
    grad[stays] = -0.0
    if rows and grad.numel() and case.often("a row has one number", 0.3):
        last = grad[-1].reshape(-1).zero_()
        last[-1] = 0.3
        grad[-1] = last.view(grad[-1].shape)
    grad = case.place("grad", spoil(case, "grad", grad, 0.2), layouts=DENSE)
    options, taken = some_options(case), case.often("taken", 0.9)
    options["grad_scale"] = 1.0
    given = {name: value for name, value in options.items() if name != "grad_scale"}
    if case.often("tensors of numbers"):
        for name in ("lr", "step"):
            dtype = case.one(f"{name} is", (torch.float32, torch.float64))
            given[name] = torch.tensor(options[name], dtype=dtype, device=DEVICE)
            options[name] = float(given[name]) if name == "lr" else options[name]
    flag = None if taken and case.often("no flag") else torch.tensor(taken, device=DEVICE)
    before = [t.clone() for t in state]
    with any_config(case, {}):
        adam_rows(*state, grad, **given, finite=flag)
    moved = (grad != 0).reshape(rows, -1).any(1) if grad.numel() else torch.zeros(rows).bool()
    moved &= taken
    for mine, old in zip(state, before, strict=True):
        assert torch.equal(mine[~moved], old[~moved]), "a row without a gradient changed"
    if moved.any():
        parts, g = [t[moved].cpu() for t in before], grad[moved].cpu().double()
        right = adam(parts, g, options)
        bounds = adam_bounds(parts, right, g, torch.zeros_like(g), g.abs(), options)
        for mine, expected, bound in zip(state, right, bounds, strict=True):
            assert_near(mine[moved], expected, bound)


def fuzz_begin(case: Case) -> None:
    """The flags of numbers, and the step that they begin."""
    entries = case.size("entries", 300, empty=0.1) * case.one("times", (1, 1, 40, 1000))
    values = case.normal(entries) * case.one("scale", (1.0, 1e38, 1e-42))
    values = spoil(case, "dz", values.clamp(-3.4e38, 3.4e38), 0.5)
    dz = case.place("dz", values, layouts=DENSE)
    counts = [
        case.place(f"count {i}", torch.tensor(float(case.one(f"count {i}", (0, 1, 6, 999)))))
        for i in range(case.one("counts", (1, 2, 5)))
    ]
    before = [float(count) for count in counts]
    options = some_options(case)
    given = {n: v for n, v in options.items() if n not in ("step", "grad_scale")}
    coefficient, factor = case.one("coefficient", (0.0, 0.1)), case.one("factor", (0.25, 2))
    numbers = {"lr": given.pop("lr"), "coefficient": coefficient}
    if case.often("tensors of numbers"):
        numbers = {n: torch.tensor(v, device=DEVICE) for n, v in numbers.items()}
    with any_config(case, {"finite": finite.CONFIGS}):
        flags = finite.flags_of(dz)
        begun = begin(flags, counts, factor=factor, **numbers, **given)
    taken = bool(values.isfinite().all())
    assert (flags.min().item() if entries else 1) == taken
    assert bool(begun.finite) == taken
    assert begun.finite.dtype == torch.bool
    assert [float(begun.taken), float(begun.skipped)] == [taken, not taken]
    assert [float(count) for count in counts] == [old + taken for old in before]
    step, lr = max(1.0, before[0] + taken), float(numbers["lr"])
    beta1, beta2, decay = options["beta1"], options["beta2"], options["weight_decay"]
    root = (1 - beta2**step) ** 0.5
    table = (
        *(-1 if options["maximize"] else 1, 1 - lr * decay * options["decoupled"]),
        *(decay * (not options["decoupled"]), 1 - beta1, beta2, 1 - beta2),
        *(options["eps"] * root, lr * root / (1 - beta1**step), not taken),
    )
    wide = torch.tensor(table, dtype=torch.float64)
    assert_as_exact(begun.scalars.cpu(), wide, 2 * EPS * wide.abs())
    product = torch.tensor(float(numbers["coefficient"]) * factor, dtype=torch.float64)
    assert_as_exact(begun.coefficient.cpu(), product, 2 * EPS * product.abs())


def fuzz_finish(case: Case) -> None:
    programs, width = case.one("programs", (0, 1, 2, 127, 130, 300)), case.size("width", 131)
    count = case.one("count", (1, 2, 7))
    values = case.normal(programs, count, width) * case.one("scale", (1.0, 1e30))
    parts = case.place("parts", spoil(case, "parts", values), layouts=DENSE)
    numbers = case.one("squares", (0, 1, 3, 129, 700))
    squares = spoil(case, "squares", case.normal(numbers).square())
    squares = case.place("squares", squares, layouts=DENSE)
    with any_config(case, {"finish": ends.CONFIGS}):
        grad, total = ends.finish(parts, squares)
    # Sums in float64, which are rounded once.
    tiny = torch.finfo(torch.float64).eps
    wide, many = parts.cpu().double(), squares.cpu().double()
    sizes = wide.abs().sum(0).nan_to_num(0.0, posinf=0.0)
    assert_near(grad, wide.sum(0), programs * tiny * sizes)
    size = many.abs().sum().nan_to_num(0.0, posinf=0.0)
    assert_near(total, many.sum(), numbers * tiny * size, torch.float64)


def some_number(case: Case, name: str, dtype: torch.dtype = FLOAT) -> Tensor:
    value = case.normal() * case.one(f"{name} times", (1e-3, 1.0, 100.0))
    return case.place(name, spoil(case, name, value, 0.1), dtype)


def fuzz_losses(case: Case) -> None:
    """The bits of PyTorch's operators."""
    task, first, second = (some_number(case, n) for n in ("task", "first", "second"))
    factors = tuple(case.one(f"factor {i}", (0, 1, 0.1, 3e-4)) for i in range(2))
    squares, tasks = some_number(case, "squares", torch.float64), case.one("tasks", (1, 3, 7))
    waiting = [some_number(case, f"loss {i}") for i in range(case.one("losses", (0, 1, 2, 3)))]
    before = [loss.clone() for loss in waiting]
    output_reg = case.place("output_reg", torch.tensor(7.0))
    with any_config(case, {}):
        whole_loss = losses.total(task, (first, second), factors)
        grads = losses.term_gradients(task, factors)
        losses.complete(squares, tasks, output_reg, waiting, factors[0])
    regularizer = (squares / tasks).float()
    completed = [old + regularizer * factors[0] for old in before]
    pairs = [
        (whole_loss, task + factors[0] * first + factors[1] * second),
        (grads, torch.stack([task * factor for factor in factors])),
        (output_reg, regularizer),
        *zip(waiting, completed, strict=True),
    ]
    for mine, right in pairs:
        torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)


KERNELS = {
    "batch": fuzz_batch,
    "trunk": fuzz_trunk,
    "trunk_backward": fuzz_trunk_backward,
    "adam_rows": fuzz_adam_rows,
    "begin": fuzz_begin,
    "finish": fuzz_finish,
    "losses": fuzz_losses,
}
