"""A step beside others: what is measured, how right it is, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.benching import hypnettorch, measure, variants
from hypermask_fast.benching.first_step import errors
from hypermask_fast.benching.laps import HostClock, Laps
from hypermask_fast.benching.names import (
    BACKWARD,
    HYPERNETWORK,
    MASKS,
    OPTIMIZER,
    PHASES,
    REGULARIZER,
    REST,
    TARGET,
)
from hypermask_fast.benching.results import FIELDS, STEP, Bench
from hypermask_fast.benching.start import Start
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.networks import MLP
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.graph import Captured, CudaGraphs, GraphedStep

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"tasks": 3, "mlp_hidden": (6,), "hidden": (5,), "batch_size": 4}
TINY_LINE = ["--tasks=3", "--mlp-hidden=6", "--hidden=5", "--batch-size=4", "--seconds=0.001"]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device, clock: 1e9)


def bench(**options: Any) -> Bench:
    return bench_own(**{**TINY, **options})


def bench_own(**options: Any) -> Bench:
    return measure.bench(RunConfig.from_preset("split-digits", **options), CPU, seconds=1e-3)


@pytest.fixture(scope="module")
def found() -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "copy_bandwidth", lambda device, clock: 1e9)
        return bench()


def test_the_published_step_has_all_phases_and_ours_says_where_its_regularizer_is(
    found: Bench,
) -> None:
    ours, torchs = found.measured
    of_published = [HYPERNETWORK, MASKS, TARGET, REGULARIZER, BACKWARD, OPTIMIZER]
    assert [*torchs.phases] == [*of_published, STEP]
    assert [*ours.phases] == [HYPERNETWORK, MASKS, TARGET, BACKWARD, OPTIMIZER, REST, STEP]
    assert ours.notes == {
        REGULARIZER: "in backward and masks",
        OPTIMIZER: "the head's in backward",
    }
    for measured in found.measured:
        for phase in measured.phases.values():
            assert 0 < phase.low <= phase.value <= phase.high
            assert phase.size >= 6
    lines = found.table().splitlines()
    rows = [line for line in lines if line.split("  ")[0] in (*PHASES, STEP)]
    assert [row.split("  ")[0] for row in rows] == [*PHASES, STEP]
    assert max(map(len, rows)) <= 90
    notes = (
        "* of hypermask_fast: regularizer in backward and masks; optimizer the head's in backward"
    )
    assert notes in lines


def test_speed_ups_are_ratios_of_medians(found: Bench) -> None:
    ours, torchs = found.measured
    expected = torchs.phases[STEP].value / ours.phases[STEP].value
    assert found.speed_up(torchs, STEP) == expected
    assert f"  {expected:.1f}\n" in found.table()
    assert found.speed_up(torchs, REGULARIZER) is None


def test_errors_are_roundings_of_float32(found: Bench) -> None:
    for measured in found.measured:
        # Residuals are a tenth of the logits that they are differences of.
        assert 0 < measured.errors["max_error"] < 1000 * EPS
        assert 0 < measured.errors["max_difference"] < 1000 * EPS


def test_a_wrong_step_has_a_large_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = variants.ours

    def wrong(start: Start, laps: Laps) -> variants.Variant:
        variant = made(start, laps)
        step = variant.step

        def late(x: Any, y: Any) -> Any:
            losses = step(x, y)
            with torch.no_grad():
                for many in variant.trained.named.values():
                    for p in many:
                        p.mul_(1.01)
            return losses

        variant.step = late
        return variant

    monkeypatch.setattr(measure, "ours", wrong)
    ours, torchs = bench().measured
    assert ours.errors["max_error"] == pytest.approx(0.01, rel=0.01)
    assert ours.errors["worst"].startswith("after.")
    assert torchs.errors["max_error"] < 1000 * EPS


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="mlp"),
        pytest.param({"network": "resnet", "resnet_n": 1, "resnet_k": 1}, id="norms-of-tasks"),
        pytest.param({"weight_decay": 0.1, "adam_beta1": 0.5}, id="decay"),
        pytest.param({"optimizer": "sgd", "momentum": 0.9, "masked_l1": False}, id="sgd"),
    ],
)
def test_both_steps_are_the_same_in_float64(options: dict[str, Any]) -> None:
    given = {k: v for k, v in TINY.items() if k != "mlp_hidden" or "network" not in options}
    config = RunConfig.from_preset("split-digits", **{**given, **options})
    start, laps = Start.of(config, CPU), Laps(HostClock())
    x, y = start.batch()
    made = [make(start, laps, torch.float64) for make in (variants.ordinary, variants.published)]
    ours, exact = (variant.first_step(x.double(), y) for variant in made)
    names = exact.keys() & ours.keys()
    assert {"gradient.head", "gradient.trunk", "gradient.net", "gradient.embeddings"} <= names
    each = errors({name: ours[name] for name in names}, exact)
    assert max(each.values()) < 1e-11


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"method": "supsup"}, "HyperMask's alone", id="supsup"),
        pytest.param({"method": "hnet"}, "HyperMask's alone", id="hnet"),
        pytest.param({"method": "hyperinterval"}, "HyperMask's alone", id="hyperinterval"),
        pytest.param({"head": "chunked"}, "no head='chunked'", id="chunked"),
    ],
)
def test_other_steps_are_measured_beside_the_learner_in_an_ordinary_loop(
    options: dict[str, Any], said: str
) -> None:
    ignored = ("hidden",) if options.get("method") == "supsup" else ()
    given = {k: v for k, v in TINY.items() if k not in ignored}
    config = RunConfig.from_preset("split-digits", **{**given, **options})
    ours, torchs = measure.bench(config, CPU, seconds=1e-3).measured
    assert said in torchs.what
    assert {TARGET, BACKWARD, OPTIMIZER, STEP} <= ours.phases.keys()
    assert ours.phases.keys() <= torchs.phases.keys()
    assert max(m.errors["max_error"] for m in (ours, torchs)) < 1000 * EPS


@pytest.mark.parametrize("method", ["hnet", "hyperinterval"])
def test_a_head_that_is_stepped_in_backward_is_said_to_be(method: str) -> None:
    config = RunConfig.from_preset("split-digits", **TINY, method=method)
    start, laps = Start.of(config, CPU), Laps(HostClock())
    fused, plain = variants.ours(start, laps), variants.ordinary(start, laps)
    assert fused.notes[OPTIMIZER] == "the head's in backward"
    assert OPTIMIZER not in plain.notes
    batch, stepped = start.batch(), []
    for variant in (fused, plain):
        (head,) = variant.trained.named["head.weight"]
        before = head.detach().clone()
        optimizer = variant.trained.optimizers[0]
        hook = optimizer.register_step_pre_hook(
            lambda *_, p=head, old=before: stepped.append(not p.equal(old))
        )
        variant.take(*batch)
        hook.remove()
    assert stepped == [True, False]


def test_a_phase_of_a_task_can_be_chosen() -> None:
    config = RunConfig.from_preset("exssnet-split-digits", tasks=2, mlp_hidden=(6,))
    found = measure.bench(config, CPU, seconds=1e-3, phase="weights")
    assert "in the phase weights" in found.table()
    assert found.measured[0].errors["worst"].endswith(("edited", "total", "task"))


class _Graphs(CudaGraphs):
    """Graphs whose replays run the step again."""

    replays = 0

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def warming_up(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, run: Callable[[], Losses], device: torch.device) -> Captured:
        def replay() -> None:
            self.replays += 1
            run()

        return Captured(replay, run())


def test_steps_that_are_replayed_are_timed_whole_without_hooks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, watched = _Graphs(), []
    watch = variants.watch

    def seen(*args: Any) -> Any:
        watched.append(watch(*args))
        return watched[-1]

    monkeypatch.setattr(variants, "watch", seen)
    monkeypatch.setattr(variants, "Compiler", lambda mode: Compiler(not mode))
    monkeypatch.setattr(variants, "GraphedStep", partial(GraphedStep, cuda=graphs))
    ours, torchs = bench(compile=True).measured
    assert ours.status == {"graph": "yes", "compile": "no: it is off"}
    assert graphs.replays >= ours.phases[STEP].size >= 6
    assert all(hook.id not in hook.hooks_dict_ref() for hook in watched[0])
    assert "graph: yes" in Bench("", "", "", [ours, torchs], {}).table()
    phases = sum(m.value for name, m in ours.phases.items() if name != STEP)
    assert ours.phases[STEP].value != pytest.approx(phases, rel=1e-9)


class _Careful(MLP):
    """A network that looks at its inputs, which the meta device does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.isfinite().all().item()
        return super().forward(x)


def make_careful(input_shape: tuple[int, ...], num_outputs: int) -> _Careful:
    return _Careful(math.prod(input_shape), (6,), num_outputs)


def test_a_network_of_ones_own_may_want_values() -> None:
    options = {k: v for k, v in TINY.items() if k != "mlp_hidden"}
    ours, torchs = bench_own(network=f"{__name__}:make_careful", **options).measured
    assert ours.errors["max_error"] < 1000 * EPS
    assert "published algorithm" in torchs.what


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "available_memory", lambda device: 10_000)
    monkeypatch.setattr(measure, "ours", None)
    with pytest.raises(measure.ConfigError, match=r"side by side and 0\.0 GiB are free on cpu"):
        bench()


def test_errors_are_left_out_where_float64_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_EXACT", 1e9)
    found = bench()
    assert "errors are not known: float64 does not fit in memory" in found.table()
    assert found.to_json()["variants"][0]["max_error"] is None


def test_the_command_prints_json_and_writes_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "steps.csv"
    assert cli.main(["bench", *TINY_LINE, "--json", "--csv", str(file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [variant["name"] for variant in told["variants"]] == ["hypermask_fast", "torch"]
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [*rows[0]] == [*FIELDS]
    assert len(rows) == 2 * (len(PHASES) + 1)
    for row in rows:
        (variant,) = (v for v in told["variants"] if v["name"] == row["variant"])
        value = variant["phases"][row["phase"]]["median_ms"]
        assert row["median_ms"] == ("" if value is None else str(value))
    (step,) = (r for r in rows if r["phase"] == STEP and r["variant"] == "torch")
    assert float(step["max_error"]) < 1000 * EPS
    assert float(step["speed_up"]) > 0


def test_hypnettorch_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hypnettorch, "available", lambda: False)
    assert cli.main(["bench", *TINY_LINE, "--against", "torch,hypnettorch"]) == 0
    assert "hypnettorch was not measured: it is not installed" in capsys.readouterr().out
    assert cli.main(["bench", *TINY_LINE, "--against", "hypnettorch"]) == 2
    assert "nothing to measure against (hypnettorch: it is not" in capsys.readouterr().err


@pytest.mark.skipif(not hypnettorch.available(), reason="hypnettorch is not installed")
def test_hypnettorch_takes_the_same_step() -> None:
    config = RunConfig.from_preset("split-digits", **TINY)
    found = measure.bench(config, CPU, against=("torch", "hypnettorch"), seconds=1e-3)
    assert [*found.measured[2].phases] == [*found.measured[1].phases]
    assert found.measured[2].errors["max_error"] < 1000 * EPS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            ["--model", "resnet20", "--tasks", "10"],
            {"preset": "cifar100-resnet", "resnet_n": 3, "resnet_k": 2, "tasks": 10},
            id="resnet20",
        ),
        pytest.param(
            ["--model", "resnet32", "--preset", "split-digits"],
            {"preset": "split-digits", "network": "resnet", "resnet_n": 5},
            id="resnet32-of-a-preset",
        ),
        pytest.param(
            ["--model", "resnet20", "--method", "hnet"],
            {"preset": "hnet-cifar-resnet", "method": "hnet", "resnet_n": 3},
            id="method",
        ),
        pytest.param(["--model", "mlp"], {"preset": "split-digits", "network": "mlp"}, id="mlp"),
        pytest.param(["--model", "zenkenet"], {"preset": "cifar100-zenke"}, id="zenkenet"),
    ],
)
def test_a_model_is_a_network_in_the_preset_that_has_it(
    words: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Seen(Exception):
        pass

    def see(config: RunConfig, *_: object, **__: object) -> None:
        assert {name: config.options()[name] for name in expected} == expected
        raise _Seen

    monkeypatch.setattr(measure, "bench", see)
    with pytest.raises(_Seen):
        cli.main(["bench", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--against", "troch"], "did you mean 'torch'?", id="against"),
        pytest.param(["--against", ","], "names nothing", id="none"),
        pytest.param(["--seconds", "0"], "seconds=0.0 is out of range", id="seconds"),
        pytest.param(["--seconds", "nan"], "seconds=nan is out of range", id="nan"),
        pytest.param(["--clock", "elapst"], "did you mean 'elapsed'?", id="clock"),
        pytest.param(["--csv", "nowhere/x.csv"], "folder nowhere does not exist", id="csv"),
        pytest.param(["--model", "resnet21"], "not 6 n + 2", id="depth"),
        pytest.param(["--model", "resnetx"], "did you mean 'resnet'?", id="model"),
        pytest.param(["--model", "mlp", "--network", "mlp"], "are both given", id="both"),
        pytest.param(["--model", "resnet20", "--resnet-n", "5"], "are both given", id="blocks"),
        pytest.param(["--phase", "mask"], "phase='mask' is unknown", id="phase"),
        pytest.param(["--tasks", "9"], "tasks is 9; it must be 1 to 5", id="tasks"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("hypermask: ")
    assert error.count("\n") == 1
