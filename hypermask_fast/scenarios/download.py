"""Fetches data files that are missing, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import DataError


def fetch_missing(
    root: Path,
    files: Sequence[str],
    download: Callable[[str], object] | None,
    title: str,
) -> None:
    """Make sure that ``files`` lie under ``root``, by downloading them where they are missing.

    The download goes to a temporary folder within ``root``; only complete files are moved from
    there, so that a failure leaves nothing behind.

    Args:
        root: Folder of the data sets.
        files: Paths within ``root``; ``path.gz`` counts as ``path``.
        download: Called with the temporary folder, which stands for ``root``; None: do not try.
        title: Name of the data set for messages.

    Raises:
        DataError: files are missing, and the download is not allowed or failed.
    """

    def missing() -> list[str]:
        return [f for f in files if not any((root / (f + end)).is_file() for end in ("", ".gz"))]

    absent = missing()
    if not absent:
        return
    names = ", ".join(Path(file).name for file in absent)
    folder = (root / absent[0]).parent
    seen = f"{title}: {names} not found in {folder}"
    if download is None:
        raise DataError(f"{seen}; put the published files there, or load with download=True")
    fix = "connect to the network and load again, or put the published files there (--data-dir)"
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            with stage(f"downloading {title}"):
                download(scratch)
            for file in absent:
                target = root / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(scratch) / file, target)
    # urllib, tarfile, torchvision and the disk all have their own exceptions.
    except Exception as error:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{seen}, and the download failed ({reason}); {fix}") from error
