"""Every file of a run's folder missing, empty, cut, altered or foreign: a sentence, or no harm."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.errors import CheckpointError, HypermaskError
from hypermask_fast.files import checkpoint
from hypermask_fast.runs import run
from tests.support.run_cases import STOP, assert_same_run, contents, edit_state, short, stopped

NEWEST, OLDER = (f"checkpoints/step-{step:09d}" for step in (STOP, STOP - 1))


class Runs:
    """A whole run, the same one stopped, and a stopped one of another seed."""

    def __init__(self, root: Path) -> None:
        self.whole, self.stopped, self.other = (root / name for name in ("whole", "half", "other"))
        run.train(short(), self.whole, show_progress=False)
        stopped(short(), self.stopped)
        stopped(short(seed=1), self.other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit_seed(file: Path) -> None:
    file.write_text(file.read_text().replace("seed = 0", "seed = 1"))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": empty,
    "cut": cut,
    "flipped": flip,
}
NO_HARM = None
# What is said of a file that is missing, empty, cut, flipped, and another run's.
SAID: dict[str, tuple[str | None, ...]] = {
    ".lock": (NO_HARM,) * 5,
    "config.toml": (
        "is not a run folder",
        "config.toml cannot be used: steps=None and epochs=None",
        "config.toml",
        "config.toml",
        "config.toml gives seed=1 and the checkpoint .* was made with seed=0; put that back",
    ),
    "metrics.jsonl": (
        "metrics.jsonl is missing, the checkpoint expects",
        "metrics.jsonl has 0 bytes, the checkpoint expects",
        "metrics.jsonl has .* bytes, the checkpoint expects",
        "metrics.jsonl was altered: the SHA-256 of its first",
        "metrics.jsonl",
    ),
    # They are written anew from the checkpoint.
    "manifest.json": (NO_HARM,) * 5,
    "timing.json": (NO_HARM,) * 5,
    "summary.json": (NO_HARM,) * 5,
    "accuracy.csv": (NO_HARM,) * 5,
    "accuracy.npz": (NO_HARM,) * 5,
    # `verify` names it.
    "learned/task-0000.safetensors": (NO_HARM,) * 5,
    f"{OLDER}/index.json": (NO_HARM,) * 5,
    f"{OLDER}/state.json": (NO_HARM,) * 5,
    f"{OLDER}/tensors.safetensors": (NO_HARM,) * 5,
    f"{NEWEST}/index.json": (
        "is missing",
        "is not JSON",
        "is not JSON",
        "altered|bytes|format",
        "altered",
    ),
    f"{NEWEST}/state.json": ("is missing", "has 0 bytes", "has .* bytes", "altered", "json"),
    f"{NEWEST}/tensors.safetensors": ("is missing", "0 bytes", "bytes", "altered", "altered"),
}
CASES = [
    pytest.param(file, damage, said, id=f"{file.rpartition('-')[2]}-{damage}")
    for file, all_said in SAID.items()
    for damage, said in zip((*DAMAGES, "foreign"), all_said, strict=True)
]


def resume(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.resume(path, show_progress=False)


def assert_refused(path: Path, said: str) -> str:
    """Resume is refused in one line, and nothing in the folder is touched."""
    before = contents(path)
    with pytest.raises(HypermaskError, match=said) as caught:
        resume(path)
    assert contents(path) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copy(source: Path, path: Path) -> Path:
    return Path(shutil.copytree(source, path / "run"))


def test_every_file_is_in_the_table(runs: Runs) -> None:
    files = {str(p.relative_to(runs.stopped)) for p in runs.stopped.rglob("*") if p.is_file()}
    assert files == SAID.keys()


@pytest.mark.parametrize(("file", "damage", "said"), CASES)
def test_a_damaged_file_is_named_or_does_no_harm(
    runs: Runs, tmp_path: Path, file: str, damage: str, said: str | None
) -> None:
    path = copy(runs.stopped, tmp_path)
    if damage == "foreign":
        shutil.copy(runs.other / file, path / file)
    elif (file, damage) == ("config.toml", "flipped"):
        edit_seed(path / file)
    else:
        DAMAGES[damage](path / file)
    if said is not None:
        assert_refused(path, said)
        return
    resume(path)
    assert_same_run(runs.whole, path)


def remove_checkpoints(path: Path) -> None:
    shutil.rmtree(path / "checkpoints")


def empty_checkpoints(path: Path) -> None:
    remove_checkpoints(path)
    (path / "checkpoints").mkdir()


def without_manifest(path: Path) -> None:
    remove_checkpoints(path)
    (path / "manifest.json").unlink()


@pytest.mark.parametrize("remove", [remove_checkpoints, empty_checkpoints, without_manifest])
def test_checkpoints_that_are_gone_are_missed(
    runs: Runs, tmp_path: Path, remove: Callable[[Path], None]
) -> None:
    path = copy(runs.stopped, tmp_path)
    remove(path)
    said = assert_refused(path, "holds no checkpoint, and .* is there, which is written after one")
    assert str(path / "checkpoints") in said


def test_the_newest_checkpoint_removed_continues_from_the_older(runs: Runs, tmp_path: Path) -> None:
    path = copy(runs.stopped, tmp_path)
    shutil.rmtree(path / NEWEST)
    resume(path)
    assert_same_run(runs.whole, path)


@pytest.mark.parametrize("source", ["other", "whole"])
def test_another_runs_checkpoint_is_refused(runs: Runs, tmp_path: Path, source: str) -> None:
    path = copy(runs.stopped, tmp_path)
    found = checkpoint.latest(getattr(runs, source) / "checkpoints")
    assert found is not None
    shutil.rmtree(path / NEWEST)
    shutil.copytree(found, path / "checkpoints" / found.name)
    # The same run's later one wants more of the log than there is.
    assert_refused(path, "with seed=1" if source == "other" else "metrics.jsonl has")


def test_a_renamed_checkpoint_is_refused(runs: Runs, tmp_path: Path) -> None:
    path = copy(runs.stopped, tmp_path)
    (path / NEWEST).rename(path / "checkpoints/step-000000011")
    assert_refused(path, f"step-000000011 is of step {STOP}: it was renamed")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "bare"
    path.mkdir()
    (path / "config.toml").write_text(short().to_toml())
    (path / "metrics.jsonl").write_text('{"task": 0, "step": 2}\n')
    (path / "checkpoints/.tmp-step-000000001").mkdir(parents=True)
    said = "bare was stopped before its first checkpoint, so it begins anew"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        run.resume(path, show_progress=False)
    assert len(caught) == 1
    assert_same_run(runs.whole, path)


# Keys of a state that tell where a run is; without one of the others it goes on.
NEEDED = {"trainer", "metrics_position"}
NEEDED_BY_TRAINER = {
    "manifest",
    "task",
    "step",
    "optimizer",
    "plateau",
    "best_accuracy",
    "accuracy",
}


def edits(state: dict[str, Any]) -> Iterator[tuple[str, bool, Callable[[dict[str, Any]], Any]]]:
    """A name, whether it must be refused, and what takes an entry of a state away or alters it."""
    for key in state:
        yield key, key in NEEDED, lambda s, key=key: s["state"].pop(key)
        yield f"{key}-text", False, lambda s, key=key: s["state"].update({key: "x"})
    for key in state["trainer"]:
        needed = key in NEEDED_BY_TRAINER
        yield f"trainer.{key}", needed, lambda s, key=key: s["state"]["trainer"].pop(key)
        change = {key: "x"}
        yield f"{key}-text", True, lambda s, c=change: s["state"]["trainer"].update(c)
    for key in state["trainer"]["task"]:
        yield f"task.{key}", False, lambda s, key=key: s["state"]["trainer"]["task"].pop(key)


@pytest.mark.long
def test_a_state_of_another_version_is_refused_in_a_sentence(runs: Runs, tmp_path: Path) -> None:
    state = checkpoint.load_latest_state(runs.stopped / "checkpoints")
    for name, is_needed, edit in edits(state):
        path = tmp_path / name
        shutil.copytree(runs.stopped, path)
        edit_state(path, edit)
        before = contents(path)
        refusal = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run.resume(path, show_progress=False)
        except HypermaskError as error:
            refusal = str(error)
        if refusal is None:
            assert not is_needed, name
            assert_same_run(runs.whole, path)
        else:
            assert "\n" not in refusal, name
            assert contents(path) == before, name


@pytest.mark.parametrize(
    ("step", "said"),
    [
        pytest.param(7, "is at step 7 of the task 'digits 2/3', to which", id="past-the-end"),
        pytest.param(-1, "is of step 9 and what it holds of step 5", id="negative"),
        pytest.param(4, "is of step 9 and what it holds of step 10", id="another"),
        pytest.param("3", "does not fit", id="text"),
    ],
)
def test_a_step_that_the_run_does_not_have_is_refused(
    runs: Runs, tmp_path: Path, step: object, said: str
) -> None:
    path = copy(runs.stopped, tmp_path)
    edit_state(path, lambda stored: stored["state"]["trainer"].update(step=step))
    assert_refused(path, said)


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": "9", "state": {}}', '{"step": 9}', "{"])
def test_a_state_file_without_state_and_step_is_refused(
    runs: Runs, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy(runs.stopped, tmp_path)
    (path / NEWEST / "state.json").write_text(text)
    monkeypatch.setattr(checkpoint, "verify", lambda *args: None)
    with pytest.raises(CheckpointError, match="holds no state and step; another version"):
        checkpoint.load_latest(path / "checkpoints")
    assert_refused(path, "holds no state and step; another version")
