"""The pages run as they stand, and show what they say; what is not run is checked."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_server import forked_commands
from tests.support.documents import (
    PAGES,
    REASONS,
    ROOT,
    blocks,
    check_block,
    check_command,
    missing,
)

RUN = {page: [block for block in blocks(page) if not block.reason] for page in PAGES}
RUN = {page: found for page, found in RUN.items() if any(b.kind != "text" for b in found)}
each_page = pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in RUN]
)


@pytest.fixture(scope="module")
def forked() -> Iterator[Path]:
    with forked_commands() as folder:
        yield folder


def shell(code: str, commands: Path) -> str:
    """What a script prints, with a folder of commands before the others."""
    done = subprocess.run(
        ["sh", "-e", "-c", code],
        env=os.environ
        | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_page(page: Path, commands: Path) -> None:
    """Run a page's blocks in the current folder, and look for what it says they print."""
    names, output = dict[str, Any](), ""
    for block in RUN[page]:
        if block.kind == "text":
            assert not (lacks := missing(block.code, output)), f"{lacks} not in:\n{output}"
            output = ""
        elif block.kind == "sh":
            output += shell(block.code, commands)
        elif block.file_name:
            Path(block.file_name).write_text(block.code, encoding="utf-8")
        elif block.kind in {"python", "setup"}:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            output += printed.getvalue()
        else:
            check_block(block)


@pytest.mark.long
@pytest.mark.xdist_group("pages")
@each_page
def test_guide(page: Path, forked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, forked)


@pytest.mark.slow
@each_page
def test_guide_in_new_processes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in {"hypermask": " -m hypermask_fast", "python": ""}.items():
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        command.chmod(0o755)
    run_page(page, commands)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]
)
def test_blocks_that_are_not_run_name_what_there_is(page: Path) -> None:
    for block in blocks(page):
        if block.reason:
            assert block.reason in REASONS
            check_block(block)


def test_a_line_that_is_not_shown_is_found() -> None:
    assert missing("a ... c\nb", "a b c\nb b") == ["b"]


@pytest.mark.parametrize(
    "command",
    [
        "hypermask train --stpes 3",
        "hypermask train --preset split-minst",
        "hypermask trian",
        "python -m benchmarks run --csae x",
        "python -m no_such_module",
        "torchrun --nproc-per-node=2 -m hypermask_fast train --stpes 3",
        "make no-such-target",
        "pip install 'hypermask_fast[no]'",
        "pytest tests/no_such_file.py",
        "hypremask train",
    ],
)
def test_what_a_command_names_wrongly_is_found(command: str) -> None:
    import shlex

    from hypermask_fast.errors import ConfigError

    with pytest.raises((AssertionError, ConfigError, SystemExit)):
        check_command(shlex.split(command))
