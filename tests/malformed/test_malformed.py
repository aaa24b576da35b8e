"""Every public callable refuses every wrong argument in one sentence, and changes nothing."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

import hypermask_fast
from hypermask_fast import functional, networks, scenarios
from hypermask_fast.errors import HypermaskError
from tests.malformed import learners, methods, operations, runs
from tests.malformed.subjects import Subject, described, equal, random_state, state

PACKAGE = str(Path(hypermask_fast.__file__).parent)
SUBJECTS = [
    *operations.SUBJECTS,
    *learners.SUBJECTS,
    *methods.SUBJECTS,
    *runs.SUBJECTS,
]
CASES = [case for subject in SUBJECTS for case in subject.cases()]


def faults(error: BaseException, changed: dict[str, Any]) -> list[str]:
    """What is wrong with an error about these arguments."""
    message, found = str(error), []
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if not where.startswith(PACKAGE):
        found.append(f"raised in {where}")
    if not isinstance(error, HypermaskError | ValueError | TypeError | RuntimeError):
        found.append(f"a {type(error).__name__}")
    if "\n" in message or re.search(r"[.!?] [A-Z]", message):
        found.append("more than a sentence")
    if "; " not in message:
        found.append("no fix")
    texts = [text for value in changed.values() for text in described(value)]
    if not any(text in message for text in texts) and "nothing" not in changed:
        found.append("the value is not shown")
    return found


def refusal(subject: Subject, made: Any, arguments: dict[str, Any]) -> Exception | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject.call(made, **arguments)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize(
    ("subject", "changed"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_wrong_argument(subject: Subject, changed: dict[str, Any]) -> None:
    made = subject.make()
    arguments = {**subject.good, **changed}
    watched = [made, *(v for v in arguments.values())]
    before = state(watched), random_state()
    error = refusal(subject, made, arguments)
    assert error is not None, "was not refused"
    found = faults(error, changed)
    assert not found, f"{', '.join(found)}: {type(error).__name__}: {error}"
    after = state(watched), random_state()
    assert equal(before[1], after[1]), "the random state changed"
    assert equal(before[0], after[0]), "something changed"


@pytest.mark.parametrize(
    "subject", [pytest.param(subject, id=subject.name) for subject in SUBJECTS if subject.runs]
)
def test_right_arguments(subject: Subject) -> None:
    error = refusal(subject, subject.make(), dict(subject.good))
    assert error is None, error


def test_every_public_callable_is_in_the_table() -> None:
    known = {subject.name.partition(".")[0] for subject in SUBJECTS}
    modules = (hypermask_fast, scenarios, networks, functional)
    no_callables = {
        "__version__",
        "SCENARIO_NAMES",
        "reference",
        "load_digits",
        "data_parallel",
    }  # without arguments
    no_callables |= {module.__name__.rpartition(".")[2] for module in modules}
    public = {name for module in modules for name in module.__all__}
    assert public - known == no_callables - {"hypermask_fast"}
