"""The memory of one of several processes, which may share the head."""

from __future__ import annotations

import json

import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.planning.plan import Plan, plan
from hypermask_fast.planning.simulation import MOMENTS, RESUMING, TARGET
from hypermask_fast.settings.config import RunConfig

HEAD, KEPT = "hypernetwork: head", "outputs kept of earlier tasks"
N, H = 64 * 300 + 300 + 300 * 2 + 2, 8
LINE = ["--tasks=3", "--steps=2", "--mlp-hidden=300", f"--hidden={H}", "--device=cpu"]


def config(**settings: object) -> RunConfig:
    given = {"tasks": 3, "steps": 2, "mlp_hidden": (300,), "hidden": (H,), "device": "cpu"}
    return RunConfig.from_options(**{**given, **settings})


def test_the_head_is_divided_and_all_else_the_same() -> None:
    processes = 3
    one = plan(config(shard_head=True)).found
    each = plan(config(shard_head=True), processes=processes).found
    rows = -(-N // processes)
    before, after = (found.peaks["training step"] for found in (one, each))
    assert before[HEAD] == 4 * N * (H + 1)
    assert after[HEAD] == 4 * rows * (H + 1)
    assert before[MOMENTS] - after[MOMENTS] == 2 * 4 * (N - rows) * (H + 1)
    assert before[KEPT] - after[KEPT] == 2 * 4 * (N - rows)
    assert before[TARGET] == after[TARGET]
    # What all of them write is what one writes, but for a last process that has fewer rows.
    spare = processes * rows - N
    assert 0 <= each.checkpoint - one.checkpoint <= 4 * spare * (3 * (H + 1) + 2)
    assert each.peaks[RESUMING]["checkpoint that is loaded"] < each.checkpoint


def test_without_a_shared_head_only_the_batch_is_divided() -> None:
    one, each = (plan(config(), processes=n).found for n in (1, 4))
    before, after = (found.peaks["training step"] for found in (one, each))
    assert after[HEAD] == before[HEAD]
    assert after["activations"] < before["activations"]
    assert each.checkpoint == one.checkpoint


def test_the_fewest_processes_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [plan(config(shard_head=True), processes=n).needed() for n in (3, 4)]
    found = plan(config(), memory=sum(needs) // 2)
    assert not found.fits()
    fewest = found.fewest()
    assert fewest is not None
    assert (fewest.processes, fewest.needed()) == (4, needs[1])
    monkeypatch.setattr(Plan, "alternatives", lambda _: [])  # which has tests of its own
    with pytest.raises(ConfigError, match=r"4 processes, shard_head=True \([0-9.]+ MiB each\)"):
        found.require()
    # The rest alone is more than there is.
    assert plan(config(), memory=needs[1] // 2).fewest() is None


def test_a_run_that_one_process_cannot_resume_goes_on_in_more() -> None:
    found = plan(config(shard_head=True))
    needs = [plan(config(shard_head=True), processes=n).needed(resuming=True) for n in (3, 4)]
    short = plan(config(shard_head=True), memory=sum(needs) // 2)
    assert found.fits(resuming=True)
    with pytest.raises(ConfigError, match="by torchrun in 4 processes with shard_head = true"):
        short.require(resuming=True)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", *LINE, "--processes=4", "--shard-head", "--memory-gib=80"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["processes"], found["fits"], found["fewest_processes"]) == (4, True, None)
    assert found["parts"][HEAD] == 4 * -(-N // 4) * (H + 1)
    assert cli.main(words) == 0
    assert "in one of 4 processes, which share the head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hnet", "head": "full"}, "method='hnet' has no full head that processes"),
        ({"head": "chunked"}, "method='hypermask' has no full head"),
        ({"method": "supsup"}, "method='supsup' has no full head"),
    ],
)
def test_a_head_that_cannot_be_shared_is_refused(settings: dict, message: str) -> None:
    given = {"tasks": 3, "steps": 2, "mlp_hidden": (8,), **settings}
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_options(shard_head=True, **given)
