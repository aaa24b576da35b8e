"""A search's study by Optuna, in a journal that is read again when the search goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from hypermask_fast.settings.sweep import SweepConfig
from hypermask_fast.studies.sweep_study import ENDED, FAILED, PRUNED, RUNNING, Trial

_FILE, _NAME, _NOTE = "study.journal", "sweep", "note"
_STATES = {
    TrialState.COMPLETE: ENDED,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: RUNNING,
}


class _FolderIsLocked:
    """No lock of its own, which a killed process would leave: the sweep's folder has one."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _GridSampler(BaseSampler):
    """Takes the combinations of a grid in their order."""

    def __init__(self, config: SweepConfig) -> None:
        self._combinations = list(config.combinations())

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return json.dumps(self._combinations[trial.number][param_name])


class OptunaStudy:
    """A study of Optuna, whose trials have texts of JSON as values.

    A sampler is made anew for each trial, with the number of the trial in its seed: a search that
    was stopped chooses what it would have chosen.

    Args:
        path: The folder of the search, which is locked.
        config: The settings of the search.
    """

    def __init__(self, path: Path, config: SweepConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = path / _FILE
        if file.exists():
            _cut_to_lines(file)
        lock: Any = _FolderIsLocked()
        backend = JournalFileBackend(str(file), lock_obj=lock)
        self._config = config
        self._study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
        )
        for trial in self._all():
            if trial.state == TrialState.RUNNING:
                self._choose(self._open(trial.number))  # what it was killed before

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def trials(self) -> Sequence[Trial]:
        return [_trial(trial) for trial in self._all()]

    def ask(self) -> Trial:
        self._study.sampler = self._sampler(len(self._all()))
        made = self._study.ask()
        self._choose(made)
        return self.trials()[made.number]

    def _choose(self, trial: optuna.Trial) -> None:
        self._study.sampler = self._sampler(trial.number)
        for name, values in self._config.grid.items():
            trial.suggest_categorical(name, [json.dumps(value) for value in values])

    def _sampler(self, number: int) -> BaseSampler:
        seed = (self._config.base.run.seed + number) % 2**32
        if self._config.sampler == "grid":
            return _GridSampler(self._config)
        return TPESampler(seed=seed) if self._config.sampler == "tpe" else RandomSampler(seed=seed)

    def _open(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._all()[number]._trial_id)

    def report(self, number: int, step: int, value: float) -> None:
        if step not in self._all()[number].intermediate_values:
            self._open(number).report(value, step)

    def tell(self, number: int, state: str, value: float | None, note: str = "") -> None:
        if note:
            self._open(number).set_user_attr(_NOTE, note)
        of_optuna = next(key for key, name in _STATES.items() if name == state)
        is_complete = of_optuna == TrialState.COMPLETE
        self._study.tell(number, values=value if is_complete else None, state=of_optuna)


def _trial(trial: FrozenTrial) -> Trial:
    values: dict[str, Any] = {name: _value(json.loads(text)) for name, text in trial.params.items()}
    note = str(trial.user_attrs.get(_NOTE, ""))
    state = _STATES[trial.state]
    reported = dict(trial.intermediate_values)
    value = trial.value
    if state == PRUNED and reported:
        value = reported[max(reported)]
    return Trial(trial.number, values, state, value, reported, note)


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cut_to_lines(file: Path) -> None:
    """Leave out a last line that was being written when the process was killed."""
    text = file.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with open(file, "r+b") as journal:
            journal.truncate(whole)
