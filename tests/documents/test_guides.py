"""The guides run as they stand, and show what they say."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def shell(code: str) -> str:
    """What commands print, by this package and what runs this."""
    bin_folder = Path("bin")
    bin_folder.mkdir(exist_ok=True)
    modules = {"hypermask": " -m hypermask_fast", "torchrun": " -m torch.distributed.run"}
    for name, words in {**modules, "python": ""}.items():
        command = bin_folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        command.chmod(0o755)
    paths = {"PATH": f"{bin_folder.resolve()}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", code],
        env=os.environ | paths | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def missing(expected: str, output: str) -> list[str]:
    """Lines that the output lacks; three dots stand for anything, spaces for more of them."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    patterns = {
        line: re.compile(".*".join(map(re.escape, " ".join(line.split()).split("..."))))
        for line in expected.splitlines()
    }
    return [line for line, pattern in patterns.items() if not any(map(pattern.fullmatch, lines))]


@pytest.mark.long
@pytest.mark.parametrize("guide", [pytest.param(path, id=path.stem) for path in GUIDES])
def test_guide(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, names, output = guide.read_text(encoding="utf-8"), dict[str, Any](), ""
    found = list(BLOCK.finditer(text))
    assert len(found) == text.count("```") / 2
    for block in found:
        kind, code = block.groups()
        if kind == "text":
            assert not (lacks := missing(code, output)), f"{lacks} not in:\n{output}"
            output = ""
        elif kind == "sh":
            output += shell(code)
        elif code.partition("\n")[0].endswith(".py"):
            name = code.partition("\n")[0].removeprefix("# ")
            Path(name).write_text(code, encoding="utf-8")
        else:
            assert kind == "python"
            line = text.count("\n", 0, block.start(2))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * line + code, str(guide), "exec"), names)
            output += printed.getvalue()


def test_a_line_that_is_not_shown_is_found() -> None:
    assert missing("a ... c\nb", "a b c\nb b") == ["b"]
