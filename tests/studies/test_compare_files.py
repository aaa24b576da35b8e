"""Tables of a comparison with known figures, and what is escaped in them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.studies.comparison_files import (
    latex,
    latex_tables,
    markdown,
    markdown_tables,
    runs_csv,
    text_table,
)
from hypermask_fast.studies.comparison_plot import picture
from hypermask_fast.studies.comparison_result import Comparison, RunFigures

TASKS = ["digits 0/1", "größe $x_$ | 50 %"]
FIRST, SECOND = [90.0, 91.0, 92.0, 93.0, 94.0], [89.0, 89.0, 89.0, 89.0, 89.0]


def figures(method: str, seed: int, acc: float) -> RunFigures:
    values = {"acc": acc, "bwt": -0.5, "forgetting": 0.5, "parameters": 12345, "mb_a_task": 0.136}
    return RunFigures(method, seed, {**values, "ms_a_step": 123.456}, [acc - 1, acc + 1])


def comparison(seeds: int = 5, runs: list[RunFigures] | None = None) -> Comparison:
    config = ComparisonConfig.from_preset(
        "split-digits", ["hypermask", "hnet"], {"data_dir": "a_b"}, seeds=seeds
    )
    made = [figures("hypermask", seed, FIRST[seed]) for seed in range(seeds)]
    made += [figures("hnet", seed, SECOND[seed]) for seed in range(seeds)]
    return Comparison(config, TASKS, made if runs is None else runs)


def cells(line: str) -> list[str]:
    return [cell for cell in line.replace(" +/- ", "+/-").split("  ") if cell]


def test_text_has_means_intervals_and_paired_tests() -> None:
    lines = text_table(comparison()).splitlines()
    rows = {line.split()[0]: [cell.strip() for cell in cells(line)] for line in lines if line}
    # Standard deviations sqrt(2.5): 2.776445 * sqrt(2.5 / 5) = 1.96.
    assert rows["hypermask"][:0] == []
    table = [[cell.strip() for cell in cells(line)] for line in lines]
    assert table[3] == [
        *("hypermask", "92.00+/-1.96", "-0.50+/-0.00", "0.50+/-0.00"),
        *("12,345", "0.136", "123+/-0", "5 of 5"),
    ]
    assert table[4][1] == "89.00+/-0.00"
    # Differences 1 to 5: t = 3 / sqrt(0.5) = 4.2426 with 4 degrees of freedom, p = 0.0132; of 32
    # choices of signs two are as far from zero; with one pair Holm changes nothing.
    assert table[7] == [
        *("hypermask - hnet", "ACC %", "3.00+/-1.96", "0.0132", "0.0132", "0.0625", "0.0625")
    ]
    assert "never below 0.0625" in "\n".join(lines)


def test_fewer_seeds_have_no_tests() -> None:
    text = text_table(comparison(seeds=4))
    assert "paired by seed" not in text
    assert "paired tests: from 5 seeds on" in text
    assert all(math.isnan(pair.t) and math.isnan(pair.flips) for pair in comparison(4).pairs())
    one = text_table(comparison(seeds=1))
    assert "seed 0\n" in one
    assert "+/-" not in one


def test_failed_runs_and_missing_figures_are_named() -> None:
    runs = [figures("hypermask", seed, FIRST[seed]) for seed in range(4)]
    runs += [RunFigures("hypermask", 4, failure="the loss is nan; lower lr")]
    runs += [figures("hnet", seed, SECOND[seed]) for seed in range(4)]
    short = {name: v for name, v in runs[0].values.items() if name != "ms_a_step"}
    runs += [RunFigures("hnet", 4, short, [1.0, 2.0], notes=["no times (old)"])]
    found = comparison(runs=runs)
    text = text_table(found)
    assert "failed: hypermask, seed 4: the loss is nan; lower lr" in text
    assert "hnet, seed 4: no times (old)" in text
    assert "4 of 5" in text
    # Of chosen seeds no mean is told.
    assert math.isnan(found.figure("hnet", "ms_a_step").mean)
    # Four seeds are common to both.
    assert found.pairs()[0].difference.size == 4
    assert math.isnan(found.pairs()[0].t)
    assert "hypermask,4,the loss is nan; lower lr,,,,,,,,\n" in runs_csv(found).replace(
        "lr" + "," * 6 + "\n", "lr" + "," * 8 + "\n"
    )
    assert found.to_json()["runs"][4]["acc"] is None


def test_nothing_ended() -> None:
    runs = [RunFigures(m, s, failure="x; y") for m in ("hypermask", "hnet") for s in range(5)]
    found = comparison(runs=runs)
    assert "0 of 5" in text_table(found)
    assert picture(found).startswith(b"\x89PNG")
    assert "0 of 5" in latex_tables(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 50 % #1 $x$ {y}", r"a\_b \& 50 \% \#1 \$x\$ \{y\}"),
        ("~^\\<|>", r"\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textbar{}"
                    r"\textgreater{}"),
        ("größe", "größe"),
    ],
)  # fmt: skip
def test_latex_is_escaped(text: str, expected: str) -> None:
    assert latex(text) == expected


def test_latex_tables_are_whole() -> None:
    text = latex_tables(comparison())
    for command in ("table", "tabular"):
        assert text.count(f"\\begin{{{command}}}") == text.count(f"\\end{{{command}}}") == 2
    lines = text.splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert [row.count("&") for row in rows] == [7, 7, 7, 6, 6]
    assert rows[0].startswith(r"method & ACC \% & BWT & ")
    assert rows[1].startswith(r"hypermask & $92.00 \pm 1.96$ & $-0.50 \pm 0.00$ & ")
    assert "$12{,}345$ & $0.136$" in rows[1]
    # All else but comments is escaped: no bare special letter.
    for line in lines:
        assert line.startswith("%") or "%" not in line.replace(r"\%", "")


def test_small_p_is_a_power_in_latex() -> None:
    runs = [figures("hypermask", s, 90 + 1e-4 * s) for s in range(5)]
    runs += [figures("hnet", s, 10.0) for s in range(5)]
    assert r" \cdot 10^{-" in latex_tables(comparison(runs=runs))


def test_markdown_is_escaped() -> None:
    assert markdown("a|b_c*[d]<e>") == r"a\|b\_c\*\[d\]\<e\>"
    lines = markdown_tables(comparison()).splitlines()
    assert lines[2].startswith("| method | ACC % | ")
    assert lines[3].count("|") == lines[4].count("|") == 9
    assert "| 92.00 ± 1.96 |" in lines[4]


def test_picture_has_each_method_in_its_colour(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "a.png"
    path.write_bytes(picture(comparison()))
    pixels = image.imread(path)[..., :3]
    for color in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
        near = abs(pixels - [c / 255 for c in color]).max(axis=-1) < 0.02
        assert near.sum() > 100
        # In both panels.
        assert near[:, : near.shape[1] // 3].any()
        assert near[:, near.shape[1] // 2 :].any()
