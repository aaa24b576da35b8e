"""The sizes of a run: those of its scenario, and the largest that there may be."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.planning.plan import plan
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.scenarios import ImageDataset, ImageSet, Scenario, cifar10_100, tiny_imagenet
from hypermask_fast.scenarios import published as presets
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.config import RunConfig
from tests.support.plan_cases import small


def full_size(name: str, classes: int, counts: tuple[int, int], shape: tuple[int, ...]):
    """A data set whose images take no memory."""
    sets = [
        ImageSet(
            torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(n, *shape), torch.arange(n) % classes
        )
        for n in counts
    ]
    return ImageDataset(name, *sets, tuple(map(str, range(classes))))


def scenario_bytes(scenario: Scenario) -> int:
    held = {}
    for task in scenario:
        for part in (task.train, task.validation, task.test):
            for tensor in (part.source.images, part.source.labels, part.index, part.labels):
                held[id(tensor)] = tensor.nbytes
        for places in (task.eval_preprocess.permutation, task.eval_preprocess.source):
            if places is not None:
                held[id(places)] = places.nbytes
    return sum(held.values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_sizes_are_those_of_the_scenario(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loader, classes, counts, shape in (
        ("mnist", 10, (60000, 10000), (1, 28, 28)),
        ("fashion_mnist", 10, (60000, 10000), (1, 28, 28)),
        ("cifar10", 10, (50000, 10000), (3, 32, 32)),
        ("cifar100", 100, (50000, 10000), (3, 32, 32)),
        ("tiny_imagenet", 200, (100000, 10000), (3, 64, 64)),
    ):
        made = full_size(loader, classes, counts, shape)
        for module in (presets, cifar10_100, tiny_imagenet):
            if hasattr(module, f"load_{loader}"):
                monkeypatch.setattr(module, f"load_{loader}", lambda root, made=made: made)
    config = RunConfig.from_options(scenario=name, steps=1)
    size, scenario = scenario_size(config), presets.make_scenario(name, "unused")
    assert size.tasks == len(scenario)
    assert size.classes == scenario.num_classes
    assert size.input_shape == scenario.input_shape
    # The digits are not of equal number in all classes.
    tolerance = 0.05 if "digits" in name else 0
    assert size.validation == pytest.approx(len(scenario[0].validation), rel=tolerance)
    assert size.test == pytest.approx(len(scenario[0].test), rel=tolerance)
    tables = sum(
        t.numel() * 8
        for t in vars(scenario[0].stream(config.training.batch_size)).values()
        if isinstance(t, torch.Tensor)
    )
    held = scenario_bytes(scenario)
    assert held <= size.data <= held + 2.6 * tables + 1000


HUGE = 10**30


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        pytest.param({"mlp_hidden": (HUGE,)}, f"mlp_hidden=({HUGE},)", id="target"),
        pytest.param({"mlp_hidden": (2**31, 2**31)}, "mlp_hidden=", id="product"),
        pytest.param({"hidden": (5, 2**63 - 1)}, "hidden=(5, 9223372036854775807)", id="width"),
        pytest.param({"embedding_dim": HUGE}, f"embedding_dim={HUGE}", id="embedding"),
        pytest.param({"capacity": HUGE}, f"capacity={HUGE}", id="capacity"),
        pytest.param({"batch_size": HUGE}, f"batch_size={HUGE}", id="batch"),
        pytest.param({"batch_size": 2**63 - 1}, f"batch_size={2**63 - 1}", id="batch-int64"),
        pytest.param({"head": "chunked", "chunk_size": HUGE}, f"chunk_size={HUGE}", id="chunk"),
        pytest.param(
            {"head": "chunked", "chunk_embedding_dim": HUGE}, "chunk_embedding_dim=", id="chunks"
        ),
        pytest.param(
            {"network": "resnet", "resnet_n": 1, "resnet_k": HUGE}, "resnet_k=", id="resnet"
        ),
        pytest.param({"network": "resnet", "resnet_n": 1, "resnet_k": 2**40}, "k=", id="planes"),
    ],
)
def test_sizes_that_overflow_are_a_sentence(settings: dict[str, object], largest: str) -> None:
    with pytest.raises(ConfigError, match="sizes of the run overflow") as caught:
        plan(small(**settings))
    assert largest in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["steps", "epochs", "eval_batch_size", "validation", "log_every", "check_every"]
)
def test_counts_that_take_no_memory_may_be_any(name: str) -> None:
    changes = {"steps": None, "epochs": HUGE} if name == "epochs" else {name: HUGE}
    assert plan(small(**changes)).peak > 0
