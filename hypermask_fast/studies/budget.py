"""A comparison at one size: hypernetworks as large as a budget of parameters lets them be."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import check_value
from hypermask_fast.planning.growth import target_parameters, trained_beside
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig


def within_budget(config: ComparisonConfig, factor: float) -> ComparisonConfig:
    """Return a comparison whose hypernetworks have the sizes that a budget allows.

    Counted is what a method trains beside the target network's own parameters
    (:func:`~hypermask_fast.planning.growth.trained_beside`); the budget is ``factor`` times the
    parameters of the plain target network. A full head that fits becomes as wide as it may be; one
    that does not becomes chunked, where the method has such heads. A chunked head gets the largest
    chunks that fit, of half the width where none do. What is left to a method without such heads
    is a narrower hypernetwork; where the narrowest is too large, the method has that, and the
    comparison's tables tell. Methods without a hypernetwork stay as they are.

    Args:
        config: The comparison.
        factor: Of the plain target network's parameters, above 0.

    Raises:
        ConfigError: A setting does not fit.
    """
    check_value("factor", float, factor, above=0.0)
    runs = {}
    for method, settings in config.runs.items():
        try:
            runs[method] = _sized(settings, factor)
        except ConfigError as error:
            raise ConfigError(f"of {method}: {error}") from error
    return config.replace(runs=runs, budget_params=factor)


@lru_cache(256)
def _beside(config: RunConfig) -> int:
    """Return :func:`trained_beside`, whose learners the search comes back to."""
    return trained_beside(config)


def _sized(config: RunConfig, factor: float) -> RunConfig:
    width, target = config.method.width, target_parameters(config)
    if not width:
        return config
    limit = factor * target
    head = config.options().get("head")
    if head != "chunked" and _beside(config) <= limit:
        return _widened(config, limit)
    chunked = _chunked(config)
    if chunked is None:
        one = _with_width(config, 1)
        if width == 1 or _beside(one) > limit:
            return one
        return _with_width(config, _largest(lambda w: _with_width(config, w), 1, width, limit))
    found = _with_chunks(chunked, target, limit)
    while _beside(found) > limit and chunked.method.width > 1:
        chunked = _with_width(chunked, chunked.method.width // 2)
        found = _with_chunks(chunked, target, limit)
    is_whole = found.options()["chunk_size"] == target and _beside(found) <= limit
    return _widened(found, limit) if is_whole else found


def _with_width(config: RunConfig, width: int) -> RunConfig:
    return config.replace(**(config.method.narrowed(width) or {}))


def _chunked(config: RunConfig) -> RunConfig | None:
    """Return settings with a chunked head; None where the method has none."""
    if config.options().get("head") == "chunked":
        return config
    offered = (changes for changes in config.method.cheaper() if changes.get("head") == "chunked")
    changes = next(offered, None)
    return None if changes is None else config.replace(**changes)


def _widened(config: RunConfig, limit: float) -> RunConfig:
    """Return settings that fit with the widest hypernetwork that does."""
    low = config.method.width
    high = 2 * low
    while _beside(_with_width(config, high)) <= limit:
        low, high = high, 2 * high
    return _with_width(config, _largest(lambda w: _with_width(config, w), low, high, limit))


def _with_chunks(config: RunConfig, target: int, limit: float) -> RunConfig:
    """Return settings with the largest chunks up to the whole target that fit.

    Where none do, those of about the least size.
    """

    def made(size: int) -> RunConfig:
        return config.replace(chunk_size=size)

    # An entry of a chunk has a row of the head and a bias.
    low = min(target, math.ceil(limit / (config.method.width + 1)))
    high, found = low + 1, _beside(made(low))
    while found > limit:
        # Smaller chunks are more of them, with an embedding each.
        if low == 1 or (smaller := _beside(made(low // 2))) >= found:
            # And larger ones are fewer, with a larger head.
            while 2 * low <= target and (larger := _beside(made(2 * low))) < found:
                low, found = 2 * low, larger
            return made(low)
        high, low, found = low, low // 2, smaller
    return made(_largest(made, low, high, limit))


def _largest(made: Callable[[int], RunConfig], low: int, high: int, limit: float) -> int:
    """Return the largest number below ``high`` whose settings fit, where those of ``low`` do.

    Sizes grow nearly in proportion, so that a straight line between both ends finds it soon.
    """
    below, above = (_beside(made(number)) for number in (low, high))
    is_line = True
    while high - low > 1:
        share = (limit - below) / (above - below) if is_line and above > below else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = _beside(made(middle))
        is_line = not is_line  # in turn by halves, for what is no line
        if found <= limit:
            low, below = middle, found
        else:
            high, above = middle, found
    return low
