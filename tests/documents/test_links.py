"""Relative links of all pages lead to files and headings that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documents import PAGES, ROOT, anchors, broken_links


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]
)
def test_links(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n[a](page.md#one-two-three) [b](#one) [c](no.md) [d](https://x.y/z)\n"
        "`[e](no.md)`\n```sh\n# [f](no.md)\n```\n"
    )
    assert anchors(page) == {"one-two-three"}
    assert broken_links(page) == ["#one", "no.md"]
