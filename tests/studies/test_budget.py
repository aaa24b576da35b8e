"""Hypernetworks at a budget, counted in learners that are made."""

from __future__ import annotations

from typing import Any

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.runs.run import build
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.studies.budget import within_budget

TARGET = 64 * 40 + 40 + 40 * 2 + 2


def sized(method: str, factor: float) -> RunConfig:
    options: dict[str, Any] = {"tasks": 3, "mlp_hidden": (40,), "device": "cpu", "steps": 1}
    for name in ("hypermask", "hnet", "hyperinterval"):
        if name == method:
            options |= {"embedding_dim": 3, "hidden": (5, 4), "capacity": 3}
    config = ComparisonConfig.from_preset("split-digits", [method], options, seeds=2)
    found = within_budget(config, factor)
    assert found.budget_params == factor
    # Again, nothing is another.
    assert within_budget(found, factor) == found
    return found.runs[method]


def hypernetwork(config: RunConfig) -> int:
    """The parameters of a hypernetwork that is made."""
    _, trainer = build(config)
    own = {id(p) for p in trainer.learner.net.parameters()}
    return sum(p.numel() for p in trainer.learner.parameters() if id(p) not in own)


@pytest.mark.parametrize(
    ("method", "factor", "varied"),
    [
        pytest.param("hypermask", 1.0, "chunk_size", id="hypermask-chunked"),
        pytest.param("hypermask", 9.5, "hidden", id="hypermask-wider"),
        pytest.param("hypermask", 0.55, "chunk_size", id="hypermask-narrower"),
        pytest.param("hnet", 1.0, "chunk_size", id="hnet"),
        pytest.param("hyperinterval", 4.0, "hidden", id="hyperinterval-narrower"),
        pytest.param("hyperinterval", 8.0, "hidden", id="hyperinterval-wider"),
    ],
)
def test_a_hypernetwork_is_the_largest_that_fits(method: str, factor: float, varied: str) -> None:
    config = sized(method, factor)
    outputs = {"hnet": 6}.get(method, 2)
    target = TARGET + 41 * (outputs - 2)
    if config.method.values().get("task_heads") == "shared":
        target = TARGET
    assert hypernetwork(config) <= factor * target
    value = config.options()[varied]
    more = (*value[:-1], value[-1] + 1) if isinstance(value, tuple) else value + 1
    assert hypernetwork(config.replace(**{varied: more})) > factor * target


def test_a_hypernetwork_is_half_as_wide_where_no_chunk_fits() -> None:
    def chunked(width: int, size: int) -> int:
        # Embeddings of 3 tasks and of the chunks, two hidden layers, the head.
        tables = 3 * 3 + -(-TARGET // size) * 32
        return tables + (3 + 32 + 1) * 5 + (5 + 1) * width + (width + 1) * size

    config = sized("hypermask", 0.5)
    size = config.options()["chunk_size"]
    assert config.options()["hidden"] == (5, 2)
    assert hypernetwork(config) == chunked(2, size) <= TARGET / 2
    assert min(chunked(4, size) for size in range(1, TARGET)) > TARGET / 2


def test_what_cannot_be_smaller_is_as_small_as_it_can_be() -> None:
    assert sized("hyperinterval", 1.0).options()["hidden"] == (5, 1)
    least = sized("hypermask", 0.1)
    assert (least.options()["hidden"], least.options()["head"]) == ((5, 1), "chunked")
    assert hypernetwork(least) < TARGET
    for method in ("supsup", "exssnet"):
        before = ComparisonConfig.from_preset("split-digits", [method])
        assert within_budget(before, 0.1).runs == before.runs


def test_a_setting_that_does_not_fit_names_the_method() -> None:
    config = ComparisonConfig.from_preset("split-digits", ["hypermask"], {"moments": "bfloat16"})
    with pytest.raises(ConfigError, match="of hypermask: moments='bfloat16' needs head='full'"):
        within_budget(config, 1.0)
    with pytest.raises(ConfigError, match="factor=0"):
        within_budget(config, 0.0)


def test_where_nothing_fits_the_size_is_about_the_least() -> None:
    sizes = [hypernetwork(sized("hypermask", factor)) for factor in (0.2, 0.05, 0.001)]
    assert min(sizes) > 0.2 * TARGET
    # The least of these heads is not twice as small as the largest.
    assert max(sizes) < 2 * min(sizes)
