"""Makes the page of the API from the docstrings that the package has when it runs."""

from __future__ import annotations

import inspect
import re
from typing import Any

from mkdocs.structure.files import File, Files

import hypermask_fast

_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*): (.*)")


def _markdown(docstring: str) -> str:
    """A docstring whose sections become lists; roles lose their name and path."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", docstring).replace("``", "`")
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if line in {"Args:", "Attributes:", "Returns:", "Raises:", "Yields:"}:
            section = line[:-1]
            lines += [f"**{section}**", ""]
        elif section and line.startswith("    "):
            entry = _ENTRY.fullmatch(line[4:]) if section not in {"Returns", "Yields"} else None
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else f"  {line.strip()}")
        else:
            section = section if not line else ""
            lines.append(line)
    return "\n".join(lines)


class _Annotation:
    """An annotation that shows as it is written."""

    def __init__(self, text: Any) -> None:
        self._text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self._text


def _signature(name: str, found: Any) -> str:
    signature = inspect.signature(found)
    empty = inspect.Parameter.empty
    parameters = [
        each if each.annotation is empty else each.replace(annotation=_Annotation(each.annotation))
        for each in signature.parameters.values()
    ]
    words = str(signature.replace(parameters=parameters, return_annotation=empty))[1:-1]
    if len(words) > 70:
        shown = re.split(r", (?=\*|\w+:)", words)
        words = "".join(f"\n    {each}," for each in shown) + "\n"
    return f"hmf.{name}({words})"


def _methods(found: type) -> list[str]:
    lines = []
    for method, function in inspect.getmembers(found, inspect.isfunction):
        own = function.__module__.startswith("hypermask_fast") and function.__doc__
        if own and not method.startswith("_"):
            summary = _markdown(inspect.getdoc(function) or "").partition("\n\n")[0]
            lines.append(f"- `{method}`: {' '.join(summary.split())}")
    return ["", "**Methods**", "", *lines] if lines else []


def _entry(name: str) -> str:
    found = getattr(hypermask_fast, name)
    lines = [f"## {name}", ""]
    if callable(found):
        lines += ["```python", _signature(name, found), "```", ""]
    lines += [_markdown(inspect.getdoc(found) or ""), ""]
    if inspect.isclass(found):
        lines += _methods(found)
    return "\n".join([*lines, ""])


def page() -> str:
    """The page, with an entry for each public name."""
    names = sorted({*hypermask_fast.__all__} - {"__version__"}, key=str.lower)
    head = (
        f"# API\n\nThe public names of version {hypermask_fast.__version__}: "
        "`import hypermask_fast as hmf`.\n"
    )
    return "\n".join([head, *map(_entry, names)])


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "api.md", content=page()))
    return files
