"""When kernels are checked, what is kept of it, and what is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hypermask_fast import functional
from hypermask_fast.backends import choice, proof
from hypermask_fast.errors import ConfigError
from hypermask_fast.kernels.selfcheck import run

CUDA = torch.device("cuda:0")
VERSIONS = {"device": "Some GPU", "driver": "535.1", "triton": "3.7.1", "torch": "2.13"}


class StandIn(proof.Machine):
    """A CUDA device that is not there."""

    capturing = False

    def __init__(self) -> None:
        self.told = dict(VERSIONS)

    def is_there(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return self.capturing

    def versions(self, device: torch.device) -> dict[str, str]:
        return self.told


class Checks:
    """Takes the place of the check: counts, and finds what it is told to."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong: dict[str, str] = {}
        self.error: Exception | None = None

    def __call__(self, device: torch.device, *, capture: Any, together: bool) -> dict[str, str]:
        self.count += 1
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
        if self.error is not None:
            raise self.error
        time.sleep(0.05)
        return {name: self.wrong.get(name, "") for name in run.KERNELS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process that knows nothing of kernels, and its empty cache."""
    monkeypatch.delenv("HYPERMASK_FAST_BACKEND", raising=False)
    monkeypatch.setenv("HYPERMASK_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(proof, "machine", StandIn())
    forget(monkeypatch)
    return tmp_path / "cache"


@pytest.fixture
def checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr(run, "check", checks)
    return checks


@pytest.fixture
def machine(folder: Path) -> StandIn:
    assert isinstance(proof.machine, StandIn)
    return proof.machine


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be another process."""
    monkeypatch.setattr(proof, "_left_out", {})
    monkeypatch.setattr(proof, "_unsaid", {})


def why(op: str = "head", forced: bool = False, device: torch.device = CUDA) -> str | None:
    return proof.why_left_out(op, device, forced=forced)


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*.json"))


def test_the_first_use_checks_and_no_later_one(
    checks: Checks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(), torch.autocast("cpu"):
        assert why() is None
    assert [why(op) for op in proof.NEEDED] == [None] * len(proof.NEEDED)
    assert (checks.count, len(records(folder))) == (1, 1)
    forget(monkeypatch)
    assert why("pack") is None
    assert checks.count == 1


@pytest.mark.parametrize("what", ["device", "driver", "triton", "torch", "kernels"])
def test_another_version_is_checked_anew(
    what: str, checks: Checks, machine: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why()
    forget(monkeypatch)
    if what == "kernels":
        monkeypatch.setattr(run, "digest", lambda: "of other sources")
    else:
        machine.told[what] = "another"
    why()
    assert (checks.count, len(records(folder))) == (2, 2)


def test_the_digest_is_of_all_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels" / "selfcheck").mkdir(parents=True)
    monkeypatch.setattr(run, "__file__", str(tmp_path / "kernels" / "selfcheck" / "run.py"))
    seen = {run.digest()}
    for name, text in (("a.py", "1"), ("a.py", "2"), ("selfcheck/b.py", "2"), ("c.json", "{}")):
        (tmp_path / "kernels" / name).write_text(text)
        seen.add(run.digest())
    assert len(seen) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "foreign"])
def test_a_damaged_record_is_made_anew(
    damage: str, checks: Checks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why()
    (path,) = records(folder)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:50],
            "empty": b"",
            "one bit": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "foreign": b"{}",
        }[damage]
    )
    forget(monkeypatch)
    assert why() is None
    assert checks.count == 2
    (path,) = records(folder)
    assert json.loads(path.read_bytes())["device"] == "Some GPU"


def test_a_record_of_other_kernels_is_made_anew(
    checks: Checks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "KERNELS", {"pack": run.KERNELS["pack"]})
        why("pack")
    forget(monkeypatch)
    why()
    assert (checks.count, len(records(folder))) == (2, 1)


def test_without_a_usable_home_the_record_is_temporary(
    checks: Checks, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("not a folder")
    why()
    assert len(records(*(tmp_path / "temporary").iterdir())) == 1
    forget(monkeypatch)
    why()
    assert checks.count == 1


def test_without_any_folder_each_process_checks(
    checks: Checks, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("not a folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for count in (1, 2):
        assert why() is None
        assert checks.count == count
        forget(monkeypatch)


def test_processes_that_start_together_check_once(checks: Checks, folder: Path) -> None:
    found = []

    def start() -> None:
        found.append(proof._checked(CUDA, "kernels-1-"))

    # The lock is of a file: threads wait for each other as processes do.
    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert checks.count == 1
    assert len(found) == 4
    assert len({json.dumps(record) for record in found}) == 1


def test_one_warning_names_what_is_left_out_and_what_replaces_it(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.wrong = {"mask_weights_backward": "dz is off by 1", "step_ahead": "no compiler"}
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="PyTorch on CUDA runs step_ahead, mask_weights in"
        ) as seen:
            assert why() is None
        assert len(seen) == 1
        message = str(seen[0].message)
        assert "Some GPU" in message
        assert "mask_weights_backward: dz is off by 1" in message
        assert "step_ahead: no compiler" in message
        assert "`hypermask doctor --kernels`" in message
        reason = "the self-check of its kernels failed on Some GPU (mask_weights_backward: dz is"
        assert (why("mask_weights") or "").startswith(reason)
        assert why("mask_threshold") is None
        # Another process finds the same in the record.
        forget(monkeypatch)
    assert checks.count == 1


def test_a_kernel_that_was_forced_raises(checks: Checks) -> None:
    checks.wrong = {"masked_linear": "y is off by 1"}
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
        with functional.backend("triton"):
            with pytest.raises(
                ConfigError, match=r"cannot run here: the self-check .* y is off by 1"
            ):
                choice.resolve("masked_linear", x)
            assert choice.uses_kernels("pack", x)
        with pytest.warns(UserWarning, match="masked_linear: y is off by 1"):
            assert choice.resolve("masked_linear", x, faster=lambda: True) == "reference"


def test_what_would_not_run_anyway_is_not_checked(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    monkeypatch.setattr(choice, "_was_slower", lambda op, tensor, sizes: True)
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda")
    assert choice.resolve("masked_linear", x) == "reference"
    assert not choice.uses_kernels("head", x, rows=2, width=3)
    with functional.backend("reference"):
        assert not choice.uses_kernels("head", x)
    assert checks.count == 0
    assert choice.resolve("masked_linear", x, faster=lambda: True) == "triton"
    assert checks.count == 1


def test_where_nothing_runs_the_machine_is_asked_again(
    checks: Checks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.wrong = dict.fromkeys(run.KERNELS, "RuntimeError: Failed to find C compiler")
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        assert why() is not None
    assert not records(folder)
    checks.wrong, checks.error = {}, torch.OutOfMemoryError("full")
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="the device has no room to check it"):
        assert why() is not None
    assert not records(folder)
    checks.error = None
    forget(monkeypatch)
    assert why() is None
    assert (checks.count, len(records(folder))) == (3, 1)


def test_a_kernel_that_ends_the_use_of_the_device_raises(checks: Checks, folder: Path) -> None:
    checks.error = run.DeviceFaultError("a kernel ended all use of cuda:0")
    with pytest.raises(run.DeviceFaultError):
        why()
    assert not records(folder)


class TestFollowed:
    """Nothing is launched beside what is traced or captured, and nothing unproven is in it."""

    def test_a_capture(self, checks: Checks, machine: StandIn) -> None:
        machine.capturing = True
        assert "not checked on this device before this was traced or captured" in (why() or "")
        assert why(forced=True) is None
        assert checks.count == 0
        machine.capturing = False
        assert why() is None
        machine.capturing = True
        assert why() is None
        assert checks.count == 1

    def test_a_capture_finds_the_record(
        self, checks: Checks, machine: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        why()
        forget(monkeypatch)
        machine.capturing = True
        assert why() is None

    def test_fake_tensors(self, checks: Checks) -> None:
        with FakeTensorMode():
            assert why() is not None
        assert checks.count == 0
        assert why() is None

    def test_compiled_code_is_compiled_again_when_kernels_are_proven(self, checks: Checks) -> None:
        def operation(x: torch.Tensor) -> torch.Tensor:
            return x + (1 if proof.why_left_out("mask_weights", CUDA, forced=False) else 2)

        torch._dynamo.reset()
        compiled, x = torch.compile(operation, fullgraph=True, backend="eager"), torch.zeros(2)
        assert compiled(x).tolist() == [1, 1]
        assert checks.count == 0
        assert why() is None
        assert compiled(x).tolist() == [2, 2]
        torch._dynamo.reset()


def test_without_a_device_nothing_is_checked(
    checks: Checks, machine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "is_there", lambda: False)
    assert why() is not None
    assert checks.count == 0


def test_the_status_tells_what_is_known(checks: Checks) -> None:
    assert proof.status(CUDA).startswith("not checked yet")
    why()
    assert proof.status(CUDA).startswith(f"{len(run.KERNELS)} right, checked on 20")
    checks.wrong = {"pack": "the bits is wrong"}
    record = proof.check(CUDA)
    assert record.failed == checks.wrong
    assert f"1 of {len(run.KERNELS)} left out (pack: the bits is wrong)" in proof.status(CUDA)
    assert why("pack") is not None
    assert checks.count == 2


_FIRST_USE = """
import json
import torch
from hypermask_fast.backends import proof

device = torch.zeros(1, device="cuda").device
found = {op: proof.why_left_out(op, device, forced=False) for op in proof.NEEDED}
record = proof._read(proof._start(device))
print(json.dumps([found, record.seconds, record.kernels]))
"""


@pytest.mark.gpu
def test_processes_that_first_use_a_gpu_check_it_once_and_soon(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    for name in ("HYPERMASK_FAST_CACHE", "TRITON_CACHE_DIR"):
        environment[name] = str(tmp_path / name)
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _FIRST_USE]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
    assert first == second
    found, seconds, kernels = first
    assert not any(found.values()), found
    assert seconds < 20
    assert kernels.keys() == run.KERNELS.keys()
    assert len(records(tmp_path / "HYPERMASK_FAST_CACHE")) == 1
