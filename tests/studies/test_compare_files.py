"""Tables of a comparison with known figures, and what is escaped in them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from hypermask_fast.figures.charts import Points
from hypermask_fast.figures.draw import drawing
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.studies.comparison_charts import charts, front
from hypermask_fast.studies.comparison_files import (
    latex,
    latex_tables,
    markdown,
    markdown_tables,
    runs_csv,
    text_table,
)
from hypermask_fast.studies.comparison_result import TARGET, X_TARGET, Comparison, RunFigures

TASKS = ["digits 0/1", "größe $x_$ | 50 %"]
FIRST, SECOND = [90.0, 91.0, 92.0, 93.0, 94.0], [89.0, 89.0, 89.0, 89.0, 89.0]


def figures(method: str, seed: int, acc: float) -> RunFigures:
    values = {"acc": acc, "bwt": -0.5, "forgetting": 0.5, "parameters": 12345, "mb_a_task": 0.136}
    values |= {"mb_stored": 1.5, "ms_a_step": 123.456}
    return RunFigures(method, seed, values, [acc - 1, acc + 1])


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
        *("12,345", "1.50", "0.136", "123+/-0", "5 of 5"),
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
    # Seven figures, and no accuracy by task.
    assert f"hypermask,4,the loss is nan; lower lr{',' * 7}\n" in runs_csv(found)
    assert found.to_json()["runs"][4]["acc"] is None


def test_nothing_ended() -> None:
    runs = [RunFigures(m, s, failure="x; y") for m in ("hypermask", "hnet") for s in range(5)]
    found = comparison(runs=runs)
    assert "0 of 5" in text_table(found)
    assert charts(found) == []
    assert ".svg" not in markdown_tables(found)
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
    assert [row.count("&") for row in rows] == [8, 8, 8, 6, 6]
    assert rows[0].startswith(r"method & ACC \% & BWT & ")
    assert rows[1].startswith(r"hypermask & $92.00 \pm 1.96$ & $-0.50 \pm 0.00$ & ")
    assert "$12{,}345$ & $1.50$ & $0.136$" in rows[1]
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
    assert lines[3].count("|") == lines[4].count("|") == 10
    assert "| 92.00 ± 1.96 |" in lines[4]


def parsed(name: str) -> ElementTree.Element:
    chart = next(each for each in charts(comparison()) if each.name == name)
    return ElementTree.fromstring(drawing(chart).markup(alone=True))


def elements(root: ElementTree.Element, tag: str, kind: str = "") -> list[ElementTree.Element]:
    found = [each for each in root.iter() if each.tag.endswith(f"}}{tag}")]
    return [each for each in found if not kind or each.get("class") == kind]


def test_accuracy_and_size_of_each_method_are_drawn() -> None:
    root = parsed("compare-pareto")
    assert [each[0].text for each in elements(root, "circle")] == ["hypermask", "hnet"]
    # The better one is as large: of both, a line joins nothing, and only one has an interval.
    assert not [e for e in elements(root, "path") if "dasharray" in e.get("style", "")]
    (bar,) = [e for e in elements(root, "line", "axis") if e.get("x1") == e.get("x2") != "62"]
    points = charts(comparison())[0]
    assert isinstance(points, Points)
    assert points.rows() == [
        ["name", points.x_title, points.y_title, "low", "high", "joined"],
        ["hypermask", 1.5, 92.0, pytest.approx(92 - 1.9632432), pytest.approx(92 + 1.9632432), 1],
        ["hnet", 1.5, 89.0, 89.0, 89.0, 0],
    ]
    scale = abs(float(bar.attrib["y1"]) - float(bar.attrib["y2"])) / (2 * 1.9632432)
    first, second = (float(each.attrib["cy"]) for each in elements(root, "circle"))
    assert (second - first) / scale == pytest.approx(3.0, abs=0.01)
    assert len(elements(parsed("compare-tasks"), "path", "band")) == 2


def test_a_front_is_what_nothing_dominates() -> None:
    rng = np.random.default_rng(0)
    cost, gain = rng.integers(0, 6, (2, 60, 8)).astype(float)
    for costs, gains in zip(cost, gain, strict=True):
        found = front(costs, gains)
        best = {c: max(g for d, g in zip(costs, gains, strict=True) if d <= c) for c in costs}
        expected = [
            i
            for i, (c, g) in enumerate(zip(costs, gains, strict=True))
            if g == best[c] and all(d >= c or h < g for d, h in zip(costs, gains, strict=True))
        ]
        assert sorted(found) == expected
        assert np.all(np.diff(costs[found]) >= 0)


def test_what_is_over_the_budget_is_told() -> None:
    runs = comparison().runs
    sizes = {"hypermask": (0.99, 400.0), "hnet": (2.5, 410.0)}
    for each in runs:
        each.values.update(zip((X_TARGET, TARGET), sizes[each.method], strict=True))
    config = comparison().config.replace(budget_params=1.0)
    found = Comparison(config, TASKS, runs)
    text = text_table(found)
    assert "over the budget of 1 x the target network: hnet, which takes 2.50 x" in text
    assert "over the budget of 1 x the target network: hypermask" not in text
    assert "in parameters: hypermask 400, hnet 410" in text
    assert "| x target |" in markdown_tables(found)
    assert "x target" not in text_table(comparison())
