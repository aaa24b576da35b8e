"""How far a run is, in one line: the whole of it, or what of it a terminal has room for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hypermask_fast.console.terminal import cells, printable, shortened

_SEPARATOR = "  "
_FEWEST_BAR, _MOST_BAR = 8, 40


@dataclass(frozen=True)
class Place:
    """How far a run is.

    Attributes:
        task, tasks: The task, counted from 1, and their number.
        name: Of the task.
        step, steps: Those of the task that are taken, and its number.
        done, total: The same of the whole run.
        rate: Steps a second; 0 where it is not known.
        accuracy: Mean test accuracy of the learned tasks in percent; None where there is none.
        losses: By name.
    """

    task: int
    tasks: int
    name: str
    step: int
    steps: int
    done: int
    total: int
    rate: float
    accuracy: float | None
    losses: Mapping[str, float]

    @property
    def percent(self) -> int:
        """Of the whole run; 100 at its end alone."""
        return 100 * self.done // max(self.total, 1)

    @property
    def loss(self) -> float | None:
        """The first of the losses, the total; None where there is none yet."""
        return next(iter(self.losses.values()), None)

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of the whole run."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


def duration(seconds: float) -> str:
    """Return a time as ``0:07``, ``3:20:00``, or of days ``2d 3h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short_duration(seconds: float) -> str:
    """Return a time in at most five letters: ``0:07``, ``3h20``, ``2d3h``."""
    hours = round(seconds / 60) // 60
    if hours >= 48:
        return f"{hours // 24}d{hours % 24}h" if hours < 2400 else f"{hours // 24}d"
    return f"{hours}h{round(seconds / 60) % 60:02}" if hours else duration(seconds)


def _short_rate(rate: float) -> str:
    """Return steps a second, or seconds a step, in at most six letters."""
    if rate >= 1000:
        return f"{rate / 1000:.{1 if rate < 99_950 else 0}f}k/s"
    if rate < 0.95:
        return f"{min(1 / rate, 9999):.{1 if rate > 0.1 else 0}f}s/it"
    return f"{rate:.{1 if rate < 9.95 else 0}f}/s"


def plain_line(place: Place) -> str:
    """Return all that is known, for a file or a pipe."""
    parts = [
        f"task {place.task}/{place.tasks} {printable(place.name)}".rstrip(),
        f"step {place.step}/{place.steps}",
        f"{place.percent} %",
    ]
    if place.remaining is not None:
        parts += [f"{place.rate:.1f} steps/s", f"ETA {duration(place.remaining)}"]
    if place.losses:
        parts.append(" ".join(f"{name} {value:.4g}" for name, value in place.losses.items()))
    if place.accuracy is not None:
        parts.append(f"accuracy {place.accuracy:.2f} %")
    return ", ".join(parts)


def _short_loss(loss: float) -> str:
    """Return a loss in about four letters: ``0.12``, ``2e-5``."""
    is_plain = loss == 0 or 0.01 <= abs(loss) < 1000 or not math.isfinite(loss)
    return f"{loss:.2g}" if is_plain else f"{loss:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _long(place: Place) -> list[str]:
    loss = place.loss
    return [
        f"{place.percent} %",
        "" if loss is None else f"loss {loss:.4g}",
        "" if place.accuracy is None else f"accuracy {place.accuracy:.2f} %",
        f"{place.rate:.1f} steps/s" if place.rate > 0 else "",
        "" if place.remaining is None else f"ETA {duration(place.remaining)}",
    ]


def _middle(place: Place) -> list[str]:
    loss = place.loss
    return [
        f"{place.percent} %",
        "" if loss is None else f"loss {loss:.3g}",
        "" if place.accuracy is None else f"acc {place.accuracy:.1f} %",
        _short_rate(place.rate) if place.rate > 0 else "",
        "" if place.remaining is None else f"ETA {_short_duration(place.remaining)}",
    ]


def _short(place: Place) -> list[str]:
    loss = place.loss
    return [
        f"{place.percent}%",
        "" if loss is None else f"loss {_short_loss(loss)}",
        "" if place.accuracy is None else f"acc {place.accuracy:.0f}%",
        _short_rate(place.rate) if place.rate > 0 else "",
        "" if place.remaining is None else _short_duration(place.remaining),
    ]


def _joined(parts: list[str], separator: str) -> str:
    return separator.join(part for part in parts if part)


def fitted_line(place: Place, width: int, *, blocks: bool = True) -> tuple[str, str, str]:
    """Return what of a place takes at most ``width`` columns: before its bar, the bar, after it.

    The bar goes first where there is little room, then words are shortened, and the task's name is
    cut in the middle; around 40 columns long numbers cost the rate, and then the loss.

    Args:
        place: How far the run is.
        width: Columns.
        blocks: Whether there are letters to draw the bar with.
    """
    number, name = f"{place.task}/{place.tasks}", printable(place.name)
    mark = "\u2026" if blocks else ".."
    long, middle, short = _long(place), _middle(place), _short(place)
    wide = _SEPARATOR
    # What is shown, what stands between, how much of the name is wanted, and the bar.
    tries = [
        (f"task {number}", long, wide, 32, _FEWEST_BAR),
        (f"task {number}", long, wide, 16, 0),
        (number, middle, wide, 12, 0),
        (number, middle, " ", 8, 0),
        (number, short, " ", 3, 0),
        (number, [part.removeprefix("loss ") for part in short], " ", 3, 0),
        (number, [*short[:3], "", short[4]], " ", 3, 0),
        (number, [short[0], "", short[2], "", short[4]], " ", 0, 0),
    ]
    for task, parts, separator, wanted, bar in tries:
        end = _joined(parts, separator)
        room = width - cells(task) - len(separator) - len(end)
        room -= len(separator) + bar if bar else 0
        if room >= min(cells(name), wanted) + 1 or (not name and room >= 0):
            shown = shortened(name, min(room - 1, 48), mark)
            begin = f"{task} {shown}".rstrip()
            drawn = ""
            if bar:
                rest = width - cells(begin) - len(end) - 2 * len(separator)
                drawn = _bar(place, min(rest, _MOST_BAR), blocks)
                return begin + separator, drawn, separator + end
            return f"{begin}{separator}{end}", drawn, ""
    return f"{number} {short[0]}"[:width], "", ""


def _bar(place: Place, width: int, blocks: bool) -> str:
    full = width * place.done // max(place.total, 1)
    return ("\u2588" if blocks else "#") * full + ("\u2591" if blocks else ".") * (width - full)
