"""What pages say of presets, figures and versions is what is recorded elsewhere."""

from __future__ import annotations

import re
import tomllib

import pytest

import hypermask_fast
from hypermask_fast.settings.presets import presets
from tests.support.documents import ROOT

DOCS = ROOT / "docs"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _rows(text: str) -> list[list[str]]:
    """The cells of the tables' rows, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_the_page_of_presets_names_each_once() -> None:
    named = [name for row in _rows(_read("docs/presets.md")) for name in row[0].split("`")[1::2]]
    assert sorted(named) == sorted(presets())


def test_expected_accuracies_are_those_of_the_page_on_accuracy() -> None:
    recorded = _read("docs/accuracy.md").partition("## The task unknown")[0]
    accuracies = {
        name: row[2]
        for row in _rows(recorded)
        if len(row) > 2 and NUMBER.match(row[2])
        for name in row[0].split("`")[1::2]
    }
    rows = _rows(_read("docs/presets.md"))
    expected = {row[0].split("`")[1]: row[-1] for row in rows if "`" in row[0]}
    assert len(accuracies) > 15
    for name, accuracy in accuracies.items():
        assert expected[name] == accuracy
    for name in ("permuted-digits", "supsup-permuted-mnist-lenet"):
        assert NUMBER.findall(expected[name])[-1] in recorded


def test_every_method_has_a_row() -> None:
    rows = {row[0].strip("`") for row in _rows(_read("docs/methods.md"))}
    folders = (ROOT / "hypermask_fast" / "methods").glob("*/settings.py")
    methods = {path.parent.name.replace("_", "-") for path in folders} - {"replay"}
    assert len(methods) == 7
    assert methods <= rows


def test_figures_of_the_readme_stand_in_the_pages() -> None:
    pages = "".join(_read(f"docs/{name}.md") for name in ("benchmarks", "accuracy", "reliability"))
    known = set(NUMBER.findall(pages))
    rows = _rows(_read("README.md").partition("## What was measured")[2])
    assert len(rows) == 6
    for _, figure, beside, command in rows[1:]:
        assert set(NUMBER.findall(figure)) <= known
        assert set(NUMBER.findall(beside)) <= known, beside
        assert command.startswith("`")


def test_the_readme_fits_a_few_screens() -> None:
    assert len(_read("README.md").splitlines()) <= 150


def test_one_version_everywhere() -> None:
    version = hypermask_fast.__version__
    assert tomllib.loads(_read("pyproject.toml"))["project"]["version"] == version
    assert f"\nversion: {version}\n" in _read("CITATION.cff")
    assert re.findall(r"^## \[(\d.*?)\]", _read("CHANGELOG.md"), re.MULTILINE)[0] == version


def test_the_papers_of_the_methods_are_cited() -> None:
    ids = set(re.findall(r"arxiv\.org/abs/([\d.]+)", _read("docs/methods.md")))
    assert ids == set(re.findall(r"arXiv:([\d.]+)", _read("CITATION.cff")))
    assert len(ids) == 5


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    named = set(re.findall(r": (\S+\.md)$", _read("mkdocs.yml"), re.MULTILINE))
    assert named == pages | {"api.md"}  # which the build makes


@pytest.mark.parametrize("name", hypermask_fast.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    assert name == "__version__" or getattr(hypermask_fast, name).__doc__
