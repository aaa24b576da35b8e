"""Short labels that keep what tells names apart."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 14
_HINT = 4
_CUT = "…"
_PIECES = re.compile(r"[^\W\d_]+|\d+|[\W_]+")
# Of several settings that differ, those that say most come first.
_TELLING = ("method", "preset", "scenario", "network", "tasks", "lr", "beta", "lam", "sparsity")
_MOST_SETTINGS = 3


def well_formed(text: str) -> str:
    """Return a text that every encoding of Unicode takes: a name of a file need be none."""
    return text.encode(errors="replace").decode()


def _begins(name: str) -> list[int]:
    """Return the places in a name at which a word, a number or what is between them begins."""
    return [match.start() for match in _PIECES.finditer(name)] + [len(name)]


def _common_prefix(names: Sequence[str]) -> str:
    """Return what all names begin with, in whole words and numbers."""
    first, last = min(names), max(names)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    length = sum(1 for _ in same)
    # Where a piece of every name ends; a number of one may go on in another.
    ends = set.intersection(*(set(_begins(name)) for name in names))
    return first[: max((end for end in ends if end <= length), default=0)]


def _hint(prefix: str) -> str:
    """Return the longest word of a prefix, short."""
    return max(re.findall(r"[^\W_]+", prefix), key=len, default="")[:_HINT]


def _cut(name: str, width: int) -> str:
    """Return a name of at most ``width`` characters, of which the end says most."""
    if len(name) <= width:
        return name
    left = (width - 1) // 3
    return f"{name[:left]}{_CUT}{name[len(name) - (width - 1 - left) :]}"


def shortened(names: Sequence[str], width: int = WIDTH) -> list[str]:
    """Return labels of at most ``width`` characters; those of different names differ.

    Names that are short enough stay. Of longer ones what all begin and end with is left out, but
    for a hint: "permuted digits 1" becomes "perm 1". What is too long even so is cut in its middle,
    and where that would make two labels one, they get the number of their place.

    Args:
        names: The names, none of which need differ from the others.
        width: At least 8.
    """
    names = [" ".join(well_formed(name).split()) for name in names]
    if all(len(name) <= width for name in names):
        return names
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return [_cut(name, width) for name in names]
    prefix = _common_prefix(distinct)
    rests = [name[len(prefix) :] for name in distinct]
    suffix = _common_prefix([rest[::-1] for rest in rests])[::-1]
    kept = [rest[: len(rest) - len(suffix)].strip() for rest in rests]
    hinted = [f"{_hint(prefix)} {each}".strip() for each in kept]
    # Of all labels or of none.
    has_room = all(len(each) <= width for each in hinted) or not all(kept)
    labels_of = hinted if has_room else kept
    found = {name: _cut(label, width) for name, label in zip(distinct, labels_of, strict=True)}
    counts = Counter(found.values())
    labels = []
    for name in names:
        label, place = found[name], distinct.index(name) + 1
        if counts[label] > 1:
            number = f" #{place}"
            label = f"{_cut(label, max(width - len(number), 2))}{number}"
        labels.append(label)
    if len(dict(zip(names, labels, strict=True))) > len(set(labels)):
        return [f"#{distinct.index(name) + 1}" for name in names]
    return labels


def told_apart(
    settings: Sequence[Mapping[str, Any]], names: Sequence[str], aside: Sequence[str] = ()
) -> list[str]:
    """Return a label for each of several runs: the settings by which they differ.

    Args:
        settings: Of each run, by flat name.
        names: Those of the runs' folders, for runs that do not differ otherwise.
        aside: Settings that need not be told.
    """
    keys = [key for key in dict.fromkeys(k for each in settings for k in each) if key not in aside]
    differing = [k for k in keys if len({repr(each.get(k)) for each in settings}) > 1]
    if "method" in differing:
        # Another method has other settings, which need not be told too.
        everywhere = [k for k in differing if all(k in each for each in settings)]
        differing = everywhere or differing
    differing.sort(key=lambda k: _TELLING.index(k) if k in _TELLING else len(_TELLING))
    shown = differing[:_MOST_SETTINGS]
    folders = shortened(list(names), 28)
    labels = [", ".join(_told(k, each[k]) for k in shown if k in each) for each in settings]
    counts = Counter(labels)
    return [
        label if label and counts[label] == 1 else f"{label}, {folder}".removeprefix(", ")
        for label, folder in zip(labels, folders, strict=True)
    ]


def _told(key: str, value: Any) -> str:
    if key in ("method", "preset", "network", "scenario"):
        return str(value) or f"no {key}"
    if isinstance(value, (list, tuple)):
        return f"{key} {' '.join(map(str, value)) or 'none'}"
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
