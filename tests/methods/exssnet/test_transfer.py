"""KKT against the recorded runs, without the published overwriting of earlier tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.masks.top_k import top_k_mask
from hypermask_fast.methods.exssnet import transfer
from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.subnetwork_scores import arrange, draw
from tests.support.subnetwork_cases import Run, close

CASES = ("plain", "shuffled", "chance")
MODES = ("knn_best", "knn_always", "knn_all")


def make(data_dir: Path, mode: str, **options: Any) -> tuple[Run, ExSSNeT]:
    run = Run(data_dir / "golden" / "kkt.npz")
    config = run.config
    config["tasks"] = config["donors"] + 1
    learner = ExSSNeT(
        run.network(),
        weights="as_is",
        density=config["sparsity"],
        kkt=mode,
        kkt_neighbours=config["K"],
        kkt_features="outputs",
        **options,
    )
    run.begin(learner)
    for task in range(config["donors"]):
        learner.begin_task(task, data=[run_batch(run, "plain", 0)])
        with torch.no_grad():
            learner.scores.copy_(run.flat(f"init/scores/{task}"))
        learner.end_task()
    return run, learner


def run_batch(run: Run, case: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return run.tensor(f"{case}/batch/{number}/x"), run.tensor(f"{case}/batch/{number}/y")


def batches(run: Run, case: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [run_batch(run, case, number) for number in range(run.config["batches_used"])]


@pytest.mark.parametrize("case", CASES)
def test_neighbours_vote_as_published(case: str, data_dir: Path) -> None:
    run, learner = make(data_dir, "knn_best")
    labels = torch.cat([y for _, y in batches(run, case)])
    for other in range(run.config["donors"]):
        rows = [transfer.features(learner, x, other, "outputs") for x, _ in batches(run, case)]
        found = torch.cat(rows)
        close(found, run[f"{case}/features/{other}"], 1e-5, f"features {other}")
        answers, right = transfer.predicted(found, labels, run.config["K"])
        assert torch.equal(answers, run.tensor(f"{case}/predicted/{other}"))
        accuracy = float((answers == right).float().mean())
        assert accuracy == np.float32(run[f"{case}/accuracy"][other])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_scores_begin_as_published_and_donors_stay(case: str, mode: str, data_dir: Path) -> None:
    run, learner = make(data_dir, mode)
    donors = run.config["donors"]
    masks = [learner.masks(task) for task in range(donors)]
    if case == "chance" and mode != "knn_always":
        drawn = torch.empty_like(learner.scores)
        learner._draw_scores(donors, drawn)
        expected = drawn
    else:
        expected = run.flat(f"{case}/{mode}/scores")
    learner.begin_task(donors, data=batches(run, case))
    close(learner.scores, expected.detach(), 2e-5, mode)
    assert learner.earlier_scores is not None
    for task in range(donors):
        start = run.flat(f"init/scores/{task}")
        assert torch.equal(learner.earlier_scores.rows[task], start)
        for name, mask in learner.masks(task).items():
            assert torch.equal(mask, masks[task][name])


def test_few_examples_and_none(data_dir: Path) -> None:
    run, learner = make(data_dir, "knn_best")
    x, y = run_batch(run, "plain", 0)
    found = transfer.features(learner, x[:3], 0, "inputs")
    answers, right = transfer.predicted(found, y[:3], 200)
    assert len(answers) == len(right) == 2
    with pytest.raises(ConfigError, match="needs at least 2"):
        transfer.predicted(found[:1], y[:1], 200)
    with pytest.raises(ConfigError, match="looks at the task's data"):
        learner.begin_task(3)


@pytest.mark.parametrize("mode", ["knn_best", "knn_always"])
def test_a_copy_without_kept_scores_has_the_donors_mask(mode: str, data_dir: Path) -> None:
    """One bit a weight is enough for it, at the cost of the donor's magnitudes."""
    run, learner = make(data_dir, mode, keep_scores=False)
    donors = run.config["donors"]
    assert learner.earlier_scores is None
    best = int(np.argmax(run["plain/accuracy"]))
    learner.begin_task(donors, data=batches(run, "plain"))
    for name, mask in learner.masks(donors).items():
        assert torch.equal(mask, learner.masks(best)[name])
    drawn = torch.empty_like(learner.scores)
    learner._draw_scores(donors, drawn)
    assert torch.equal(learner.scores.sign(), drawn.sign())
    for part, shape in zip(learner.scores.split(learner._sizes), run.config["shapes"], strict=True):
        assert float(part.detach().abs().max()) <= shape[1] ** -0.5


def test_every_share_of_a_weight_can_be_arranged() -> None:
    shapes = [(40, 25), (1, 16), (3, 5), (2, 2)]
    sizes = [40 * 25, 16, 15, 4]
    scores = torch.empty(sum(sizes))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        dropped = [int(torch.randint(n + 1, (), generator=generator)) for n in sizes]
        mask = top_k_mask(torch.randn(len(scores), generator=generator), sizes, dropped)
        for rule in ("top_k", "threshold"):
            draw(scores, shapes, seed, 1)
            arrange(scores, mask, shapes, rule)
            made = top_k_mask(scores, sizes, dropped) if rule == "top_k" else scores >= 0
            assert torch.equal(made, mask), (seed, rule)
