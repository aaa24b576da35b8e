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


def _entry(name: str) -> str:
    found = getattr(hypermask_fast, name)
    lines = [f"## {name}", ""]
    if callable(found):
        try:
            signature = str(inspect.signature(found))
        except ValueError:
            signature = "(...)"
        lines += ["```python", f"hypermask_fast.{name}{signature}", "```", ""]
    if isinstance(found, str):
        return "\n".join([*lines, f"`{found!r}`", ""])
    lines += [_markdown(inspect.getdoc(found) or ""), ""]
    if inspect.isclass(found):
        for method, function in inspect.getmembers(found, inspect.isfunction):
            own = function.__module__.startswith("hypermask_fast") and function.__doc__
            if own and not method.startswith("_"):
                summary = _markdown(inspect.getdoc(function) or "").partition("\n\n")[0]
                lines.append(f"- `.{method}()`: {' '.join(summary.split())}")
    return "\n".join([*lines, ""])


def page() -> str:
    """The page, with an entry for each public name."""
    names = sorted(hypermask_fast.__all__, key=str.lower)
    head = "# API\n\nThe public names: `import hypermask_fast as hmf`.\n"
    return "\n".join([head, *map(_entry, names)])


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "api.md", content=page()))
    return files
