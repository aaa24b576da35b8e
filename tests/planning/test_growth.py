"""What a task adds and what is trained, against learners that are made."""

from __future__ import annotations

from typing import Any

import pytest

from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.planning.growth import (
    bytes_a_task,
    stored_bytes,
    target_parameters,
    trained_beside,
    trained_parameters,
)
from hypermask_fast.runs.run import build
from hypermask_fast.settings.config import RunConfig

PRESETS = {
    "hypermask": "split-digits",
    "hnet": "hnet-split-digits",
    "supsup": "supsup-split-digits",
    "exssnet": "exssnet-split-digits",
    "hyperinterval": "hyperinterval-split-digits",
}


def small(method: str, tasks: int) -> RunConfig:
    options: dict[str, Any] = {"tasks": tasks, "mlp_hidden": (6, 5), "device": "cpu", "steps": 1}
    if method in ("hypermask", "hnet", "hyperinterval"):
        options |= {"embedding_dim": 3, "hidden": (4,), "capacity": tasks}
    return RunConfig.from_preset(PRESETS[method], **options)


@pytest.mark.parametrize(
    ("method", "options"), [*((name, {}) for name in PRESETS), ("hypermask", {"earlier": "frozen"})]
)
def test_a_task_adds_what_trained_learners_differ_by(method: str, options: dict[str, Any]) -> None:
    sizes: list[int] = []
    for tasks in (3, 4):
        scenario, trainer = build(small(method, tasks).replace(**options))
        for task in scenario:
            trainer.fit(task)
        sizes.append(sum(t.nbytes for t in weights_of(trainer.learner).values()))
    config = small(method, 3).replace(**options)
    assert bytes_a_task(config) == sizes[1] - sizes[0] > 0
    assert stored_bytes(config) == sizes[0]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # 64 * 6 + 6 * 5 + 5 * 2 weights: a bit of each.
        pytest.param("supsup", -(-424 // 8), id="supsup"),
        pytest.param("hypermask", 3 * 4, id="hypermask"),
        # The centre of the universal box, and no more.
        pytest.param("hyperinterval", 3 * 4, id="hyperinterval"),
    ],
)
def test_bytes_of_a_task(method: str, expected: int) -> None:
    assert bytes_a_task(small(method, 3)) == expected


def test_spare_rows_do_not_count() -> None:
    config = small("hypermask", 3)
    assert bytes_a_task(config.replace(capacity=128)) == bytes_a_task(config)
    assert trained_parameters(config.replace(capacity=128)) == trained_parameters(config)


def test_trained_parameters() -> None:
    weights, biases = 64 * 6 + 6 * 5 + 5 * 2, 6 + 5 + 2
    assert trained_parameters(small("supsup", 3)) == weights
    # The target; embeddings, the hidden layer and the head of a number for each entry.
    hypernetwork = 3 * 3 + (3 + 1) * 4 + (4 + 1) * (weights + biases)
    found = trained_parameters(small("hypermask", 3))
    assert found == weights + biases + hypernetwork
    assert target_parameters(small("hypermask", 3)) == weights + biases
    assert trained_beside(small("hypermask", 3)) == hypernetwork
    assert trained_beside(small("exssnet", 3)) == trained_beside(small("supsup", 3)) == weights
    # Scores of all weights, and a tenth of the weights, rounded in each layer.
    assert trained_parameters(small("exssnet", 3)) - weights == pytest.approx(42.4, abs=1.5)
