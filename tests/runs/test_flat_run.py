"""A run that was begun when settings had no tables goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig

# Two tasks of split-digits, stopped after step 17 of the second one's 30. accuracy_at_end.csv and
# metrics_at_end.jsonl are what the code that began it ended with.
RECORDED = Path(__file__).parents[1] / "data" / "flat_run"


def test_a_run_without_tables_resumes_and_ends_as_it_did(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(RECORDED, folder)
    config = RunConfig.from_toml(folder / "config.toml")
    assert config == RunConfig.from_preset(
        "split-digits",
        tasks=2,
        steps=30,
        mlp_hidden=(8,),
        embedding_dim=3,
        hidden=(4,),
        capacity=2,
        lr=0.02,
        log_every=10,
        checkpoint_every=0.0,
        device="cpu",
        seed=5,
    )
    with pytest.warns(RuntimeWarning, match="an earlier version made the checkpoint"):
        run.resume(folder, show_progress=False)
    ended = (RECORDED / "accuracy_at_end.csv").read_text()
    assert (folder / "accuracy.csv").read_text() == ended
    then, now = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (RECORDED / "metrics_at_end.jsonl", folder / "metrics.jsonl")
    )
    assert len(now) == len(then)
    for record, expected in zip(now, then, strict=True):
        # Another split of a sum may round differently: 13 steps of Adam, in float32.
        loss = "loss" in expected
        kept = {name: record[name] for name in expected}
        assert kept == (pytest.approx(expected, rel=1e-4) if loss else expected)
