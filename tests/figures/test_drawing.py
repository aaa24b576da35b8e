"""What is drawn is what stands in the csv."""

from __future__ import annotations

import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hypermask_fast.figures import accuracy, by_class, capacity, embeddings, losses, overlap
from hypermask_fast.figures.charts import Bars, Chart, Heat, Lines, Points, Series
from hypermask_fast.figures.colors import contrast, hexadecimal, rgb
from hypermask_fast.figures.draw import drawing
from hypermask_fast.figures.inside import Inside
from hypermask_fast.figures.paint import paint
from hypermask_fast.figures.scales import log_ticks, ticks
from hypermask_fast.metrics import continual

NAN = float("nan")
R = np.array(
    [[10, 20, 30, 5], [90, 26, NAN, NAN], [94, 80, 40, NAN], [80, 85, 99, 9], [NAN] * 4],
    dtype=np.float64,
)
NAMES = ["permuted digits 1", "a&b", "<script>alert(1)</script>", "größe $x_$"]
ROWS = [
    {"task": t, "task_name": NAMES[t], "step": s, "loss": 1 / (s + t), "task_loss": 0.5 / (s + t),
     "output_reg": 0.1 * t, "lr": 1e-3, "time": 3.0, "steps_per_second": None}
    for t in range(3) for s in (2, 4, 5)
]  # fmt: skip


def table(chart: Chart) -> list[list[str]]:
    return list(csv.reader(io.StringIO(chart.csv_text())))


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(drawing(chart).markup(alone=True))


def elements(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [e for e in root.iter() if e.tag.endswith(f"}}{tag}")]


def test_the_matrix_has_the_measured_rows_with_their_values() -> None:
    chart = accuracy.matrix_of(R, NAMES)
    rows = table(chart)
    assert rows[0] == ["after training on", *NAMES]
    assert [row[0] for row in rows[1:]] == ["before training", *NAMES[:3]]
    found = np.array([[float(v) if v else NAN for v in row[1:]] for row in rows[1:]])
    np.testing.assert_array_equal(found, R[:4])
    texts = [e.text for e in elements(parsed(chart), "text")]
    for value in R[:4][~np.isnan(R[:4])]:
        assert f"{value:.1f}" in texts
    rects = [e for e in elements(parsed(chart), "rect") if len(e)]
    assert len(rects) == np.sum(~np.isnan(R[:4]))
    colors = {e.attrib["style"].removeprefix("fill:") for e in rects}
    assert colors == {hexadecimal(v / 100) for v in R[~np.isnan(R)]}


@pytest.mark.parametrize("log_y", [False, True])
def test_lines_go_through_the_values_of_the_csv(log_y: bool) -> None:
    x = np.array([1.0, 2.0, 5.0, 9.0])
    chart = Lines(
        name="n",
        title="t",
        series=[Series("a", x, np.array([1.0, 10.0, NAN, 3.0])), Series("b", x, x * 2)],
        x_title="x",
        y_title="y",
        log_y=log_y,
    )
    rows = [row for row in table(chart)[1:] if row[2]]
    values = np.array([[float(v) for v in row[1:]] for row in rows])
    paths = [e for e in elements(parsed(chart), "path") if len(e)]
    drawn = np.array(
        [
            [float(v) for v in pair.split()]
            for path in paths
            for pair in re.findall(r"[ML]([\d. -]+)", path.attrib["d"])
        ]
    )
    if log_y:
        values[:, 1] = np.log(values[:, 1])
    for axis in (0, 1):
        fit = np.polyfit(values[:, axis], drawn[:, axis], 1)
        # Coordinates have a tenth of a pixel.
        np.testing.assert_allclose(np.polyval(fit, values[:, axis]), drawn[:, axis], atol=0.15)
        assert (fit[0] > 0) == (axis == 0)


def test_curves_are_those_of_the_matrix() -> None:
    chart = accuracy.curves(R, NAMES)
    rows = table(chart)[1:]
    assert [r for r in rows if r[0] == NAMES[0]] == [
        [NAMES[0], "1", "90.0"], [NAMES[0], "2", "94.0"], [NAMES[0], "3", "80.0"],
    ]  # fmt: skip
    assert [float(r[2]) for r in rows if r[0] == "mean of the learned"] == [90.0, 87.0, 88.0]
    assert accuracy.so_far(R)[-1] == continual.acc_final(R)
    assert accuracy.forgotten(R)[-1] == continual.forgetting_max(R)


def test_seeds_are_a_mean_with_a_band() -> None:
    first, _ = accuracy.compared({"two": [R, R + 2.0], "one": [R]})
    rows = [r for r in table(first)[1:] if r[0] == "two"]
    assert rows[1][2:] == ["88.0", "87.0", "89.0"]
    assert [r[3:] for r in table(first)[1:] if r[0] == "one"] == [["", ""]] * 3
    bands = [e for e in elements(parsed(first), "path") if e.attrib.get("class") == "band"]
    assert len(bands) == 1


def test_losses_count_steps_over_tasks() -> None:
    chart = losses.losses(ROWS)
    rows = table(chart)[1:]
    steps = [int(r[1]) for r in rows if r[0] == "loss"]
    assert steps == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert {r[0] for r in rows} == {"loss", "task loss", "output reg"}
    assert [at for at, _ in chart.marks] == [0.0, 5.0, 10.0]
    compared = losses.compared({"x": [ROWS, ROWS[:-1]]})
    assert [r[1] for r in table(compared)[1:]][-1] == "14"
    long = [{**ROWS[0], "step": s} for s in range(1, 10**4)]
    assert len(losses.losses(long).series[0].x) <= losses.MOST_POINTS + 1
    assert losses.losses(long).series[0].x[-1] == 10**4 - 1


def test_classes_and_confusions() -> None:
    counts = np.array([[8, 2], [0, 5]])
    tasks = [by_class.Counts("a", (0, 1), counts), by_class.Counts("b", (2, 3), counts * 2)]
    assert by_class.by_class(tasks).values.tolist() == [[80.0, 100.0]] * 2
    chart = by_class.confusions(tasks)
    assert chart is not None
    expected = np.full((4, 4), NAN)
    expected[:2, :2] = expected[2:, 2:] = [[80, 20], [0, 100]]
    np.testing.assert_array_equal(chart.values, expected)
    many = by_class.Counts("c", range(100), np.eye(100, dtype=np.int64))
    assert by_class.confusions([many]) is None
    apart = [by_class.Counts("d", (2 * i, 2 * i + 1), counts) for i in range(40)]
    chart = by_class.confusions(apart)
    assert chart is not None
    assert chart.values.tolist() == [[80.0, 20.0], [0.0, 100.0]]
    assert by_class.confusions([*apart, many]) is None


def inside_of(masks: np.ndarray, binary: bool) -> Inside:
    """Two tensors of 7 and 5 entries, of masks (tasks, 12)."""
    parts = np.split(masks, [7], axis=1)
    return Inside(
        tasks=[f"task {i}" for i in range(len(masks))],
        binary=binary,
        layers=["first.weight", "second.weight"],
        sizes=np.array([7.0, 5.0]),
        shared=np.stack([p @ p.T for p in parts]),
        kept=np.stack([np.square(p).sum(1) for p in parts]),
        by_any=np.array([float((p != 0).any(0).sum()) for p in parts]),
        by_all=np.array([float((p != 0).all(0).sum()) for p in parts]),
        every=1,
        embeddings=None,
    )


def test_overlap_and_capacity_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    masks = (generator.random((3, 12)) < 0.5).astype(np.float64)
    found = inside_of(masks, True)
    whole, layers = overlap.overlap(found)
    for i in range(3):
        for j in range(3):
            a, b = masks[i] > 0, masks[j] > 0
            assert whole.values[i, j] == pytest.approx(100 * (a & b).sum() / (a | b).sum())
    a, b, c = masks[:, :7] > 0
    pairs = [100 * (a & other).sum() / (a | other).sum() for other in (b, c)]
    assert layers.values[0, 0] == pytest.approx(np.mean(pairs))
    chart = capacity.capacity(found)
    assert chart is not None
    assert chart.series["any task"][-1] == pytest.approx(100 * (masks > 0).any(0).mean())
    assert chart.series["all tasks"][0] == pytest.approx(100 * (masks[:, :7] > 0).all(0).mean())
    assert chart.series["a task (mean)"][-1] == pytest.approx(100 * masks.mean())
    weights = generator.normal(size=(2, 12))
    cosine = weights[0] @ weights[1] / np.prod(np.linalg.norm(weights, axis=1))
    assert overlap.overlap(inside_of(weights, False))[0].values[0, 1] == pytest.approx(100 * cosine)
    assert capacity.capacity(inside_of(weights, False)) is None


def test_bars_are_as_long_as_their_values() -> None:
    values = np.array([10.0, 40.0, NAN])
    chart = Bars(name="n", title="t", groups=["a", "b", "c"], labels=["a", "b", "c"],
                 series={"x": values}, high=50.0)  # fmt: skip
    assert table(chart)[1:] == [["a", "10.0"], ["b", "40.0"], ["c", ""]]
    widths = [float(e.attrib["width"]) for e in elements(parsed(chart), "rect") if len(e)]
    assert widths[1] / widths[0] == pytest.approx(4.0, rel=0.01)
    assert len(widths) == 2


def test_principal_axes_keep_distances() -> None:
    generator = np.random.default_rng(0)
    places = generator.normal(size=(5, 2))
    basis = np.linalg.qr(generator.normal(size=(6, 2)))[0]
    found, shares = embeddings.principal(places @ basis.T + 3.0)
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (places, found)]
    np.testing.assert_allclose(*distances, atol=1e-12)
    assert shares.sum() == pytest.approx(1.0)
    alone = embeddings.embedding_map(np.ones((1, 4)), ["only"])
    assert (alone.x.tolist(), alone.y.tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("tasks", [1, 3, 12, 100])
def test_every_figure_can_be_drawn(tasks: int) -> None:
    names = [f"permuted digits {i}" for i in range(tasks)]
    matrix = np.full((tasks + 1, tasks), NAN)
    matrix[np.tril_indices(tasks + 1, -1, tasks)] = 97.0
    charts: list[Chart] = [
        accuracy.matrix_of(matrix, names),
        accuracy.curves(matrix, names),
        embeddings.embedding_map(np.random.default_rng(0).normal(size=(tasks, 3)), names),
    ]
    for chart in charts:
        made = drawing(chart)
        root = ElementTree.fromstring(made.markup(alone=True))
        assert 0 < made.height < 1200
        for text in elements(root, "text"):
            assert -5 <= float(text.attrib["x"]) <= made.width + 5, text.text
            assert 0 <= float(text.attrib["y"]) <= made.height, text.text


def test_labels_of_a_drawing_do_not_overlap() -> None:
    generator = np.random.default_rng(1)
    chart = embeddings.embedding_map(generator.normal(size=(60, 2)), [f"t {i}" for i in range(60)])
    assert isinstance(chart, Points)
    texts = [e for e in elements(parsed(chart), "text") if (e.text or "").startswith("t ")]
    boxes = []
    for e in texts:
        wide = 6.0 * len(e.text or "")
        shift = {"end": wide, "middle": wide / 2}.get(e.attrib.get("text-anchor", ""), 0.0)
        boxes.append((float(e.attrib["x"]) - shift, float(e.attrib["y"]), wide))
    assert len(boxes) > 20
    for i, (x, y, wide) in enumerate(boxes):
        for other_x, other_y, other in boxes[:i]:
            assert abs(y - other_y) >= 9 or x >= other_x + other - 2 or other_x >= x + wide - 2


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_pixels_and_paper(kind: str) -> None:
    heat = accuracy.matrix_of(R, NAMES)
    made = paint(heat, kind)
    assert made.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])
    assert made == paint(heat, kind)


def test_all_kinds_are_painted() -> None:
    lines = losses.losses(ROWS)
    bars = Bars(name="n", title="t", groups=["a"], labels=["a"], series={"x": np.ones(1)})
    points = embeddings.embedding_map(np.eye(3), NAMES[:3])
    for chart in (lines, bars, points):
        assert paint(chart, "png").startswith(b"\x89PNG")


def test_scales() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(97.2, 98.1, 4) == pytest.approx([97.5, 98.0])
    assert log_ticks(0.02, 300) == [0.1, 1.0, 10.0, 100.0]
    assert log_ticks(2, 9) == [2, 5]
    assert rgb(0.0) == (0x44, 0x01, 0x54)
    assert rgb(7.0) == rgb(1.0) == (0xFD, 0xE7, 0x25)
    assert (contrast(0.1), contrast(0.95)) == ("#fff", "#000")


def test_a_heat_map_without_values_is_drawn() -> None:
    empty = Heat(
        name="n", title="t", values=np.full((2, 2), NAN), row_names=["a", "b"],
        column_names=["c", "d"], row_labels=["a", "b"], column_labels=["c", "d"],
        row_title="r", column_title="c", value_title="v",
    )  # fmt: skip
    assert "NaN" not in drawing(empty).markup()
