"""The memory of a run, told before it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hypermask_fast
from hypermask_fast import cli
from hypermask_fast import memory as memory_left
from hypermask_fast.errors import ConfigError
from hypermask_fast.memory import available_memory
from hypermask_fast.methods.base import Learner
from hypermask_fast.planning.live_memory import KEPT, LiveMemory
from hypermask_fast.planning.plan import Plan, plan
from hypermask_fast.planning.simulation import MOMENTS, TARGET
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.runs import run
from hypermask_fast.scenarios import ImageDataset, ImageSet, Scenario, cifar10_100, tiny_imagenet
from hypermask_fast.scenarios import published as presets
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer

MIB = 2**20
HEAD, KEPT_OUTPUTS = "hypernetwork: head", "outputs kept of earlier tasks"
PREVIOUS = "weights of the last task"
ROOT = Path(__file__).parents[2]


def small(**settings) -> RunConfig:
    defaults = {"tasks": 3, "steps": 2, "hidden": (5,), "device": "cpu"}
    if "network" not in settings:
        defaults["mlp_hidden"] = (8,)
    return RunConfig.from_options(**{**defaults, **settings})


# Resident memory of a run over that after a tiny one, which loads and sets up what every run does.
MEASURE = """
import json, sys, warnings
from pathlib import Path
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig

def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

folder, settings = sys.argv[1], json.loads(sys.argv[2])
tiny = RunConfig.from_options(tasks=2, steps=2, mlp_hidden=(8,), hidden=(4,), device="cpu")
run.train(tiny, folder + "/tiny", show_progress=False)
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
run.train(RunConfig.from_options(**settings), folder + "/run", show_progress=False)
print(1024 * (kib("VmHWM") - before))
"""


def measured_peak(settings: dict[str, object], folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.long
def test_planned_peak_is_within_a_tenth_of_the_measured_one(tmp_path: Path) -> None:
    settings = {
        "tasks": 2,
        "steps": 2,
        "mlp_hidden": (650, 700),
        "hidden": (100,),
        "batch_size": 128,
        "device": "cpu",
    }
    found = plan(RunConfig.from_options(**settings))
    assert found.found.facts["head_parameters"] > 50e6
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("/proc/self/clear_refs cannot be written: peak memory is measured on Linux")
    if not found.available or found.available < 3 * found.peak:
        pytest.skip(f"{found.available} bytes of memory are available, and it takes {found.peak}")
    measured = measured_peak(settings, tmp_path)
    assert found.peak == pytest.approx(measured, rel=0.1)


def test_parts_are_those_of_the_formulas() -> None:
    # N = 9 * 65 + 9 * 2 mask entries, H = 5, two earlier tasks.
    parts = plan(small(hidden=(6, 5))).found.peaks["training step"]
    n = 64 * 8 + 8 + 8 * 2 + 2
    assert parts[TARGET] == 4 * n
    assert parts[HEAD] == 4 * n * 6
    trunk = 48 * 6 + 6 + 6 * 5 + 5 + 128 * 48
    assert parts[MOMENTS] == 2 * 4 * (n + n * 6 + trunk)
    assert parts[PREVIOUS] == 4 * n
    # Beside them ids and counters.
    assert 0 <= parts[KEPT_OUTPUTS] - 2 * 4 * n <= 100


def test_frozen_tasks_keep_their_weights_and_nothing_else() -> None:
    peaks = plan(small(hidden=(6, 5), earlier="frozen")).found.peaks
    n = 64 * 8 + 8 + 8 * 2 + 2
    for moment, tasks in (("training step", 2), ("evaluation", 3)):
        assert peaks[moment]["weights of frozen tasks"] == tasks * 4 * n
        assert peaks[moment].get(PREVIOUS, 0) == 0
        assert 0 <= peaks[moment][KEPT_OUTPUTS] <= 100


@pytest.mark.long
@pytest.mark.parametrize("method", ["supsup", pytest.param("exssnet", marks=pytest.mark.slow)])
def test_the_plan_of_subnetworks_is_near_the_measured_peak(method: str, tmp_path: Path) -> None:
    settings = {
        "method": method,
        "tasks": 2,
        "steps": 2,
        "mlp_hidden": (3000, 3000),
        "batch_size": 32,
        "device": "cpu",
    }
    found = plan(RunConfig.from_options(**settings))
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("/proc/self/clear_refs cannot be written: peak memory is measured on Linux")
    if not found.available or found.available < 3 * found.peak:
        pytest.skip(f"{found.available} bytes of memory are available, and it takes {found.peak}")
    assert found.peak == pytest.approx(measured_peak(settings, tmp_path), rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="full"),
        pytest.param({"targets": "bfloat16"}, id="bfloat16-targets"),
        pytest.param({"targets": "frozen_head"}, id="frozen-head"),
        pytest.param({"moments": "bfloat16"}, id="bfloat16-moments"),
        pytest.param({"earlier": "frozen"}, id="frozen"),
        pytest.param({"earlier": "frozen", "selection": "best"}, id="frozen-best"),
        pytest.param({"head": "chunked", "chunk_size": 50}, id="chunked"),
        pytest.param({"selection": "best", "check_every": 1}, id="best"),
        pytest.param({"lam": 0.0, "train_target": False}, id="fixed-target"),
        pytest.param({"network": "resnet", "resnet_n": 1, "resnet_k": 1}, id="norms"),
    ],
)
def test_checkpoint_and_learner_are_those_of_a_trainer(settings: dict[str, object]) -> None:
    config = small(**settings)
    found = plan(config).found
    scenario, trainer = run.build(config)
    for task in scenario.tasks[:-1]:
        trainer.fit(task)
    tensors: dict[str, torch.Tensor] = {}
    trainer.hooks.append(lambda t: tensors.update(t.state()[0]))
    trainer.fit(scenario.tasks[-1])
    del tensors["rng/cpu"]
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    # The plan counts ids and counters that are saved as JSON.
    assert 0 <= found.checkpoint - sum(sizes.values()) <= 100
    assert found.learner == sum(v for k, v in sizes.items() if k.startswith("learner/"))


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


def test_too_many_tasks_are_refused_as_by_the_scenario() -> None:
    with pytest.raises(ConfigError, match="tasks is 6; it must be 1 to 5"):
        plan(RunConfig.from_options(steps=1, tasks=6))


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


@pytest.mark.parametrize("gib", ["1.7e308", "1e400", "nan", "0"])
def test_memory_out_of_range_is_a_sentence(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--memory-gib", gib]) == 2
    assert "memory-gib=" in capsys.readouterr().err


def test_a_plan_makes_nothing_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    # 27 GB of target weights: the head alone takes more than any machine has.
    found = plan(RunConfig.from_options(steps=1, mlp_hidden=(80000, 80000), device="cpu"))
    assert found.peak > 3 * 4 * 6.4e9 * 100
    assert not found.fits()
    assert torch.equal(before, torch.get_rng_state())


def test_what_would_fit_does_fit() -> None:
    config = small(mlp_hidden=(200,), hidden=(100,))
    whole = plan(config)
    tight = plan(config, memory=whole.needed() - 2 * MIB)
    assert whole.fits()
    assert not tight.fits()
    found = dict(tight.alternatives())
    (narrowed,) = [text for text in found if text.startswith("hidden=")]
    width = found[narrowed].found.facts["head_width"]
    assert found[narrowed].fits()
    assert not plan(config.replace(hidden=(width + 1,)), memory=tight.available).fits()
    assert {"moments='bfloat16'", "head='chunked'"} <= set(found)
    with pytest.raises(ConfigError, match=r"what would fit: .*head='chunked'.*hidden=\(") as caught:
        tight.require()
    assert f"{tight.needed() / MIB:,.1f} MiB" in str(caught.value)


def test_selection_and_moments_count() -> None:
    config = small(mlp_hidden=(200,), hidden=(100,), validation=40)
    last, best = plan(config), plan(config.replace(selection="best"))
    head = last.parts[HEAD]
    # The best model, whose memory the next best one takes.
    assert best.peak - last.peak == pytest.approx(head, rel=0.1)
    halved = plan(config.replace(moments="bfloat16"))
    assert last.peak - halved.peak == pytest.approx(head, rel=0.1)


def test_plan_of_another_machine() -> None:
    config = small(device="cuda")
    assert plan(config, memory=80 * 2**30).fits()
    assert not plan(config, memory=MIB).fits()
    assert "memory of the host" in plan(config).table()


def planned(found: Plan) -> str:
    return f"{found.peak / MIB:,.1f} MiB"


ARGUMENTS = ["--tasks", "2", "--steps", "2", "--mlp-hidden", "8", "--device", "cpu"]


def test_plan_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.from_preset("split-digits", tasks=2, steps=2, mlp_hidden=(8,), device="cpu")
    assert cli.main(["plan", *ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    assert planned(plan(config)) in printed
    assert "checkpoints on disk" in printed
    assert cli.main(["plan", *ARGUMENTS, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["peak"] == sum(values["parts"].values()) == hypermask_fast.plan(config).peak
    assert values["fits"] is True


def test_what_does_not_fit_is_refused_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["plan", *ARGUMENTS, "--memory-gib", "0.01"]) == 2
    printed = capsys.readouterr()
    assert "peak" in printed.out
    assert "10.2 MiB are available" in printed.err
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "build", lambda config: pytest.fail("something was built"))
        arguments = ["train", *ARGUMENTS, "--out", str(out), "--memory-gib", "0.01"]
        assert cli.main(arguments) == 2
    assert not out.exists()
    assert cli.main(["train", *ARGUMENTS, "--out", str(out)]) == 0
    assert cli.main(["resume", str(out), "--memory-gib", "0.01"]) == 2
    assert "checkpoint that is loaded" in capsys.readouterr().err
    assert cli.main(["plan", "--memory-gib", "-1"]) == 2
    assert "memory-gib=-1.0" in capsys.readouterr().err


def test_trainer_uses_bfloat16_moments(tmp_path: Path) -> None:
    scenario, trainer = run.build(small(moments="bfloat16"))
    dtypes = set()
    trainer.hooks.append(
        lambda t: dtypes.update(
            (k.rpartition("/")[2], v.dtype) for k, v in t.state()[0].items() if "optimizer/" in k
        )
    )
    trainer.fit(scenario[0])
    assert ("exp_avg", torch.bfloat16) in dtypes
    with pytest.raises(ConfigError, match="moments='bfloat16' needs head='full'"):
        small(moments="bfloat16", head="chunked")
    with pytest.raises(ConfigError, match=r"moments='bfloat' .*did you mean 'bfloat16'"):
        Trainer(Learner(torch.nn.Linear(1, 1), 1), moments="bfloat")


def test_live_memory_counts_what_lives() -> None:
    with LiveMemory(heap=False) as memory:
        with memory.making("a"):
            a = torch.empty(1000, device="meta")
            view = a[10:]
        with memory.making("b"):
            b = torch.empty(500, device="meta")
        del b
        assert memory.live("a") == 4000
        assert memory.live("b") == 0
        assert memory.take_peak() == {"a": 4000, "b": 2000}
        del a
        assert memory.live("a") == 4000
        del view
        assert memory.live("a") == 0


def test_small_blocks_stay_with_a_cpu_process() -> None:
    with LiveMemory(heap=True) as memory:
        torch.empty(2**20, device="meta")
        big = torch.empty(2**24, device="meta")
        assert memory.take_peak() == {"other": 2**26, KEPT: 2**22}
        del big
        assert memory.take_peak() == {"other": 2**26, KEPT: 2**22}
        torch.empty(10, device="meta")
        assert memory.take_peak() == {KEPT: 2**22}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param(
            {"proc/meminfo": "MemFree: 1 kB\nMemAvailable: 900 kB\n"}, 921600, id="machine"
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 900 kB\n",
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup/a/memory.max": "500000\n",
                "cgroup/a/memory.current": "200000\n",
                "cgroup/a/memory.stat": "anon 1\ninactive_file 50000\n",
                "cgroup/a/b/memory.max": "max\n",
                "cgroup/a/b/memory.current": "100\n",
            },
            350000,
            id="group-v2",
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 900 kB\n",
                "proc/self/cgroup": "4:cpu,memory:/x\n0::/\n",
                "cgroup/memory/memory.limit_in_bytes": "300000\n",
                "cgroup/memory/memory.usage_in_bytes": "400000\n",
            },
            0,
            id="group-v1-full",
        ),
        pytest.param(
            {
                "proc/meminfo": "MemAvailable: 100 kB\n",
                "proc/self/cgroup": "0::/\n",
                "cgroup/memory.max": "500000\n",
                "cgroup/memory.current": "200000\n",
            },
            102400,
            id="machine-has-less",
        ),
    ],
)
def test_host_memory(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    assert memory_left._host_memory(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_available_memory_of_what_is_not_there_is_unknown() -> None:
    assert available_memory("cuda:99") is None
    assert available_memory("mps") is None
