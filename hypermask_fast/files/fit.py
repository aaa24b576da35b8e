"""Whether what a checkpoint holds fits what takes it over, and one sentence where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypermask_fast.errors import CheckpointError, HypermaskError
from hypermask_fast.files.plain_json import plain_json


@contextmanager
def in_a_sentence(path: Path) -> Iterator[None]:
    """Turn what a state of another version, or for other settings, raises into a CheckpointError.

    Args:
        path: Of the checkpoint.
    """
    try:
        yield
    except HypermaskError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"the checkpoint {path} does not fit ({type(e).__name__}: {' '.join(str(e).split())}); "
            "continue it with the version of hypermask_fast and the settings that made it"
        ) from e


def require_same(saved: Mapping[str, Any], restored: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a trainer did not take a state over as it was saved.

    What only one of them has is of another version, and not looked at. Nor are the groups of
    optimizers, which may have been changed, and what the method keeps, which it looks at.
    """
    for name in saved.keys() & restored.keys() - {"optimizer", "optimizers", "task"}:
        now = plain_json(restored[name], name, nonfinite_as_text=False)
        if saved[name] != now:
            raise CheckpointError(
                f"the checkpoint has {name}={saved[name]!r} and the trainer took it over as "
                f"{now!r}; continue it with the version of hypermask_fast and the settings that "
                "made it"
            )
