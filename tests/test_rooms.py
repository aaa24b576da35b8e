"""The rooms of the package: who may import whom, and what a module and its tests look like."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Top to bottom: a room knows the floors below its own, and no other room of its floor.
FLOORS = (
    ("benchmarks",),
    ("face",),
    ("finished",),
    ("studies", "benching"),
    ("runs", "integrations"),
    ("records",),
    ("figures", "planning", "saving"),
    ("settings", "files"),
    ("training",),
    ("inference",),
    ("methods",),
    ("hypernetworks", "conversion"),
    ("optim", "layers"),
    ("head", "masks"),
    ("networks", "scenarios"),
    ("backends",),
    ("native",),
    ("kernels",),
    ("console", "metrics"),
    ("ground",),
)
# The rooms that are no folder.
FACE = (
    "__init__",
    "__main__",
    "cli",
    "commands",
    "doctor",
    "functional",
)
GROUND = (
    "reference",
    "errors",
    "counters",
    "lazy",
    "tables",
    "fields",
    "factories",
    "modes",
    "memory",
    "held",
    "vision",
)

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {
    "hypermask_fast": ROOT / "hypermask_fast",
    "hypermask_fast.kernels": ROOT / "kernels",
    "benchmarks": ROOT / "benchmarks",
}
MOST_LINES = 400


def files(*endings: str) -> Iterator[tuple[str, Path]]:
    """Every file with one of the endings, with the dotted name of its folder's package."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*")):  # which follows no link
            if path.suffix in endings:
                yield ".".join((package, *path.relative_to(folder).parts[:-1])), path


def module_name(package: str, path: Path) -> str:
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


MODULES = {module_name(package, path): (package, path) for package, path in files(".py")}


def room_of(module: str) -> str:
    """The room of a module; "tests" and names that no floor has are their own."""
    top, _, rest = module.partition(".")
    if top != "hypermask_fast":
        return top
    name = rest.partition(".")[0] or "__init__"
    return "face" if name in FACE else "ground" if name in GROUND else name


def imported(source: str, package: str) -> set[str]:
    """The modules of this repository that a source imports, wherever in it and for whatever."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {base}
    return {name for name in found if name.partition(".")[0] in {*FOLDERS, "tests", "kernels"}}


IMPORTS = {
    module: imported(path.read_text(encoding="utf-8"), package)
    for module, (package, path) in MODULES.items()
}


def lines(found: list[str]) -> str:
    return "\n".join(["", *found])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, hypermask_fast.errors", {"hypermask_fast.errors"}),
        ("from hypermask_fast import errors, __version__", {"hypermask_fast.errors"}),
        ("from hypermask_fast.errors import nearest", {"hypermask_fast.errors"}),
        ("def f():\n    from hypermask_fast.runs import run", {"hypermask_fast.runs.run"}),
        ("if TYPE_CHECKING:\n    import benchmarks.suite", {"benchmarks.suite"}),
        ("from . import run", {"hypermask_fast.runs.run"}),
        ("from ..errors import nearest", {"hypermask_fast.errors"}),
        ("from tests.support import head_cases", {"tests.support"}),
    ],
)  # fmt: skip
def test_imports_are_found_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert imported(source, "hypermask_fast.runs") == expected


def test_every_room_has_a_floor() -> None:
    assert sorted({room_of(module) for module in MODULES}) == sorted(FLOOR_OF)


def test_arrows_only_run_down() -> None:
    upward = [
        f"{module} ({room_of(module)}) imports {other} ({room_of(other)})"
        for module, others in IMPORTS.items()
        for other in sorted(others)
        if room_of(other) != room_of(module)
        and FLOOR_OF.get(room_of(other), -1) <= FLOOR_OF.get(room_of(module), -1)
    ]
    assert not upward, lines(upward)


def test_no_module_imports_itself_through_others() -> None:
    def reached(module: str) -> set[str]:
        seen, left = set(), [module]
        while left:
            new = IMPORTS.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    reach = {module: reached(module) for module in IMPORTS}
    circles = {
        " <-> ".join(sorted(other for other in reach[module] if module in reach.get(other, ())))
        for module in IMPORTS
        if module in reach[module]
    }
    assert not circles, lines(sorted(circles))


def test_files_are_small() -> None:
    counts = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for _, path in files(".py", ".cpp", ".h")
    }
    large = [f"{path}: {count} lines" for path, count in counts.items() if count > MOST_LINES]
    assert not large, lines(large)


def test_no_module_is_private() -> None:
    private = [
        module
        for module in MODULES
        for part in module.split(".")
        if part.startswith("_") and part != "__main__"
    ]
    assert not private, lines(private)


def test_every_room_has_tests() -> None:
    bare = [
        room
        for room in FLOOR_OF
        if room not in {"face", "ground"} and not any((ROOT / "tests" / room).rglob("test_*.py"))
    ]
    assert not bare, lines(bare)
