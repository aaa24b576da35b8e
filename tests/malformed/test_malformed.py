"""Every public callable refuses every wrong argument in one sentence, and changes nothing."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

import hypermask_fast
from hypermask_fast.errors import HypermaskError
from tests.malformed import learners, operations, runs
from tests.malformed.subjects import Subject, described, equal, random_state, state

PACKAGE = str(Path(hypermask_fast.__file__).parent)
CASES = [
    case
    for module in (operations, learners, runs)
    for subject in module.SUBJECTS
    for case in subject.cases()
]


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
    names = [name for name in changed if name in message]
    if not any(text in message for text in texts) and "nothing" not in changed:
        found.append("the value is not shown")
    if not names and len(message) > 400:
        found.append("too long")
    return found


@pytest.mark.parametrize(
    ("subject", "changed"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_wrong_argument(subject: Subject, changed: dict[str, Any]) -> None:
    made = subject.make()
    arguments = {**subject.good, **changed}
    watched = [made, *(v for v in arguments.values())]
    before = state(watched), random_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject.call(made, **arguments)
        except Exception as error:
            found = faults(error, changed)
            assert not found, f"{', '.join(found)}: {type(error).__name__}: {error}"
        else:
            pytest.fail("was not refused")
    after = state(watched), random_state()
    assert equal(before[1], after[1]), "the random state changed"
    assert equal(before[0], after[0]), "something changed"


def test_the_table_is_large() -> None:
    assert len(CASES) >= 200
