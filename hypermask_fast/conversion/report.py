"""One table of all parts of a network: masked, or how they are treated, or refused and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from hypermask_fast.conversion.checks import check_free
from hypermask_fast.conversion.entries import Entry
from hypermask_fast.conversion.parts import Treatment, parts_of
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.layers.norms import check_module


def tied_names(net: nn.Module) -> dict[str, list[str]]:
    """Return the further names of parameters that several places have, by their first name."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}
    tied: dict[str, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if first[id(parameter)] != name:
            tied.setdefault(first[id(parameter)], []).append(name)
    return tied


def table(
    entries: Sequence[Entry], tied: Mapping[str, Sequence[str]], reasons: Mapping[str, str]
) -> list[str]:
    """Return a line for each parameter (name, shape, size, what becomes of it), and a sum.

    Args:
        entries: The parameters.
        tied: As in :func:`tied_names`.
        reasons: What to print in place of a reason, or of what becomes of a parameter by its name.
    """

    def status(entry: Entry) -> str:
        own = reasons.get(entry.name, reasons.get(entry.reason, entry.reason))
        return own or "masked"

    rows = [
        (
            entry.name,
            "x".join(map(str, entry.shape)) or "()",
            f"{entry.size:,}",
            status(entry)
            + (f" (also {', '.join(tied[entry.name])})" if entry.name in tied else ""),
        )
        for entry in entries
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    sums: Counter[str] = Counter()
    for entry in entries:
        sums[status(entry)] += entry.size
    masked = sum(entry.size for entry in entries if status(entry) == "masked")
    rest = [f"{size:,} {what}" for what, size in sums.items() if what != "masked"]
    return [
        *(
            f"{name:<{widths[0]}}  {shape:>{widths[1]}}  {size:>{widths[2]}}  {what}"
            for name, shape, size, what in rows
        ),
        f"{masked:,} of {sum(sums.values()):,} target parameters are masked"
        + (f"; not masked: {', '.join(rest)}" if rest else ""),
    ]


def conversion_report(
    net: nn.Module, exclude: Patterns = (), *, shared: Patterns = (), per_task: Patterns = ()
) -> str:
    """Return what :class:`hypermask_fast.HyperMask` would make of each part of a network, as text.

    A line for each parameter: masked, normalisation (see ``bn``), shared, a copy for each task,
    frozen, or refused and why; the sum of each; and what is refused, with the way out. Nothing is
    changed, and what would be refused raises nothing.

    Args:
        net: The network.
        exclude, shared, per_task: As HyperMask takes them.

    Raises:
        ConfigError: A pattern is none or matches nothing, or the network belongs to a learner.
        TypeError: It is no module.
    """
    check_module(net)
    check_free(net)
    treatment = Treatment(net, {"exclude": exclude, "shared": shared, "per_task": per_task})
    parts = parts_of(net, treatment, generated=False, shares=True)
    reasons = {}
    for each in parts.obstacles:
        for entry in parts.entries:
            of_module = entry.name == each.name or entry.name.rpartition(".")[0] == each.name
            if of_module and entry.reason not in treatment.reasons:
                reasons[entry.name] = f"refused: {each.why}"
    lines = table(parts.entries, tied_names(net), reasons)
    lines += [f"cannot be masked, trained for all tasks: {name}" for name in parts.shared]
    lines += [f"refused: {each.sentence}" for each in parts.obstacles]
    return "\n".join(lines)
