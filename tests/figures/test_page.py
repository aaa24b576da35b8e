"""The report is one page that refers to nothing, with every name escaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hypermask_fast.figures import accuracy
from hypermask_fast.figures.page import Expected, Report, Setting, page

EVIL = "<script>alert(1)</script>\"'&"
_VOID = {"meta", "br", "link", "img"}


class Parsed(HTMLParser):
    """Tags, attributes and texts of a page; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made() -> str:
    names = [EVIL, "a&b", "größe"]
    matrix = np.full((4, 3), np.nan)
    matrix[np.tril_indices(4, -1, 3)] = 90.0
    return page(
        Report(
            title=EVIL,
            subtitle=EVIL,
            tiles=[(EVIL, EVIL)],
            notes=[EVIL],
            expected=[Expected(EVIL, "90", "91", True, EVIL), Expected("x", "95", "91", False)],
            tasks=[("", "task", "at the end"), ("1", EVIL, "90.00")],
            metrics=[("acc_final", "90.00", EVIL)],
            charts=[accuracy.matrix_of(matrix, names), accuracy.curves(matrix, names)],
            settings=[Setting("run", "seed", EVIL, None), Setting("run", "device", "cpu", "auto")],
            machine=[(EVIL, EVIL)],
            command=EVIL,
        )
    )


def test_names_are_texts_and_nothing_else() -> None:
    text = made()
    found = Parsed(text)
    assert "script" not in found.tags
    assert "<script" not in text
    assert found.texts.count(EVIL) >= 8
    assert "a&b" in found.texts
    assert not any(name.startswith("on") for name, _ in found.attributes)


def test_it_refers_to_nothing_outside() -> None:
    text = made()
    found = Parsed(text)
    assert not {"link", "img", "iframe", "object", "base"} & {*found.tags}
    addresses = [v for n, v in found.attributes if n in ("href", "src", "action", "data")]
    assert addresses
    places = {value for name, value in found.attributes if name == "id"}
    for address in addresses:
        assert address.startswith("data:text/csv;base64,") or address[1:] in places, address
    assert not re.search(r"https?://|url\(|@import", text)


def test_it_has_the_data_of_its_figures() -> None:
    found = Parsed(made())
    data = [v.partition(",")[2] for n, v in found.attributes if v.startswith("data:")]
    tables = [base64.b64decode(each).decode() for each in data]
    assert tables[0].splitlines()[1].endswith("90.0,,")
    assert tables[1].splitlines()[0] == "series,tasks learned,accuracy (%)"


def test_it_marks_what_matters() -> None:
    text = made()
    assert "✓" in text
    assert "✗" in text
    assert '<tr class="changed">' in text
    assert "instead of auto" in text
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


@pytest.mark.parametrize("part", ["tasks", "metrics", "settings", "expected", "machine"])
def test_what_there_is_not_has_no_section(part: str) -> None:
    assert f'id="{part}"' not in page(Report(title="t", subtitle="s"))
