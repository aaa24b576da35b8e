"""Pages of the documentation: their blocks of code, their links, and checks of what is not run.

A block is run as it stands, unless the line above it is ``<!-- not run: REASON -->`` with a reason
of ``REASONS``. A comment that begins with ``<!-- setup`` holds Python that is run and not shown.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

import hypermask_fast
from hypermask_fast import cli
from hypermask_fast.settings.command_line import from_arguments
from hypermask_fast.settings.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "NOTES.md"]
)
REASONS = ("a GPU", "a download", "hours", "many processes", "another library")
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)
_NEITHER_CHECKED = {"cat", "cd", "cmp", "echo", "git", "kill", "ls", "source", "wait"}


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        kind: python, sh, console, toml or text (what the blocks before it print); setup.
        reason: Why it is not run; "" where it is.
        line: The page's line before its first.
    """

    kind: str
    code: str
    reason: str
    line: int

    @property
    def file_name(self) -> str:
        """The file that a Python block is, as its first line says, or ""."""
        found = re.match(r"# (\w+\.py)\n", self.code)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """Read the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        name = "code" if match["setup"] is None else "setup"
        kind = match["kind"] if name == "code" else "setup"
        line = text.count("\n", 0, match.start(name))
        found.append(Block(kind, match[name], match["reason"] or "", line))
    assert sum(block.kind != "setup" for block in found) == text.count("```") / 2
    assert len([block for block in found if block.reason]) == text.count("<!-- not run")
    return found


def check_block(block: Block) -> None:
    """Check a block without running it: its syntax, and that what it names exists."""
    if block.kind in {"python", "setup"}:
        _check_python(block.code)
    elif block.kind == "sh":
        subprocess.run(["sh", "-n"], input=block.code, text=True, check=True)
        for words in _commands(block.code):
            check_command(words)
    elif block.kind == "console":
        for line in block.code.splitlines():
            if line.startswith("$ "):
                check_command(shlex.split(line[2:], comments=True))
    elif block.kind == "toml":
        assert tomllib.loads(block.code)
        RunConfig.from_toml(block.code)
    else:
        assert block.kind in {"text", "bibtex"}, f"a block of {block.kind!r} is not checked"


def _check_python(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "hmf":
                assert getattr(hypermask_fast, node.attr) is not None
        elif isinstance(node, ast.ImportFrom) and node.module and "hypermask" in node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def _commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a script without compound commands."""
    variables: dict[str, str] = {}
    for line in code.replace("\\\n", " ").splitlines():
        text = Template(line).safe_substitute(variables)
        lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        for separates, words in itertools.groupby(lexer, {"&&", "||", "|", ";", "&"}.__contains__):
            if not separates:
                found = list(words)
                while found and (given := re.fullmatch(r"([A-Z]\w*)=(.*)", found[0])):
                    variables[given[1]] = given[2]
                    del found[0]
                yield found


def check_command(words: list[str]) -> None:
    """Check that a command's options and names exist: read, as it does, but not run."""
    if ">" in words:
        words = words[: words.index(">")]
    match words:
        case ["hypermask", *rest] | ["python", "-m", "hypermask_fast", *rest]:
            _check_hypermask(rest)
        case ["python", "-m", "benchmarks", *rest]:
            from benchmarks.__main__ import _parser

            _parser().parse_args(rest)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python", file, *_]:
            assert file.endswith(".py"), words
        case ["torchrun", *rest]:
            from torch.distributed.run import get_args_parser

            started = get_args_parser().parse_args(rest)
            program = ["-m"] * started.module + [started.training_script]
            check_command(["python", *program, *started.training_script_args])
        case ["make", *targets]:
            lines = (ROOT / "Makefile").read_text().splitlines()
            for target in targets:
                assert "=" in target or any(line.startswith(f"{target}:") for line in lines), words
        case ["pytest", *rest]:
            for word in rest:
                assert word.startswith("-") or (ROOT / word.partition("::")[0]).exists(), words
        case ["pip", "install", *rest]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for word in rest:
                for extra in re.findall(r"(?:hypermask_fast|\.)\[(\w+)\]", word):
                    assert extra in project["optional-dependencies"], words
        case []:
            pass
        case [name, *_]:
            assert name in _NEITHER_CHECKED, f"{name} in {words} is no command that pages may have"


def _check_hypermask(words: list[str]) -> None:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        options = cli._options(words)
        if options.command in {"train", "plan"}:
            from_arguments(options)


def missing(expected: str, output: str) -> list[str]:
    """Lines that the output lacks; three dots stand for anything, spaces for more of them."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    patterns = {
        line: re.compile(".*".join(map(re.escape, " ".join(line.split()).split("..."))))
        for line in expected.splitlines()
    }
    return [line for line, pattern in patterns.items() if not any(map(pattern.fullmatch, lines))]


def _without_blocks(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as its host makes them."""
    titles = re.findall(r"^#+ (.*)$", _without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    text = re.sub(r"`[^`\n]+`", "", _without_blocks(page))
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found
