"""Short labels keep what tells names apart."""

from __future__ import annotations

import random

import pytest

from hypermask_fast.figures.labels import shortened, told_apart


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["permuted digits 1", "permuted digits 2"], ["perm 1", "perm 2"]),
        ([f"permuted digits {i}" for i in (1, 10, 11)], ["perm 1", "perm 10", "perm 11"]),
        (["digits 0/1", "digits 2/3"], ["digits 0/1", "digits 2/3"]),
        (["rotated by 10 degrees", "rotated by 20 degrees"], ["rota 10", "rota 20"]),
        (["permutation1", "permutation20000"], ["perm 1", "perm 20000"]),
        (["digits permutation 1", "digits permutation 22"], ["perm 1", "perm 22"]),
        (["one name that is very long"], ["one … very long"]),
        (["hidden.0.weight of it", "hidden.0.bias of it all"], ["hidd weight of it", ""]),
        ([], []),
    ],
)
def test_examples(names: list[str], expected: list[str]) -> None:
    found = shortened(names)
    for label, wanted in zip(found, expected, strict=True):
        assert len(label) <= 14
        assert not wanted or label == wanted or len(wanted) > 14


def test_labels_that_would_be_one_are_numbered() -> None:
    names = ["alpha one of the same ending", "alpha two of the same ending", "beta"]
    first, second, third = shortened(names)
    assert (first[:3], first[-3:]) == ("alp", " #1")
    assert second == first[:-1] + "2"
    assert third == "beta"


def test_labels_differ_as_names_do_and_fit() -> None:
    generator = random.Random(0)
    words = ["permuted", "digits", "task", "a", "größe", "10", "1", "1.5", "<b>", "classes", "中文"]
    for _ in range(400):
        width = generator.choice([8, 14, 22])
        common = [generator.choice(words) for _ in range(generator.randrange(4))]
        end = [generator.choice(words) for _ in range(generator.randrange(2))]
        names = []
        for _ in range(generator.randrange(1, 40)):
            own = [generator.choice(words) for _ in range(generator.randrange(1, 4))]
            joined = generator.choice(["", " ", "_"]).join([*common, *own, *end])
            names.append(f"{joined}{generator.randrange(30)}")
        labels = shortened(names, width)
        assert len(labels) == len(names)
        assert all(0 < len(label) <= width for label in labels), (names, labels)
        pairs = set(zip(names, labels, strict=True))
        assert len({label for _, label in pairs}) == len(set(names)), (names, labels)
        assert len(pairs) == len(set(names))
        if all(len(name) <= width for name in names):
            assert labels == [" ".join(name.split()) for name in names]


def test_runs_are_told_apart_by_their_settings() -> None:
    base = {"method": "hypermask", "lr": 1e-3, "beta": 0.01, "seed": 0, "device": "cpu"}
    several = [base, {**base, "lr": 2e-3, "device": "cuda"}, {**base, "method": "hnet"}]
    labels = told_apart(several, ["a", "b", "c"], ("device",))
    assert labels == ["hypermask, lr 0.001", "hypermask, lr 0.002", "hnet, lr 0.001"]
    assert told_apart([base, dict(base)], ["one", "two"]) == ["one", "two"]
    assert told_apart([base, {**base, "seed": 3}], ["x", "x"]) == ["seed 0", "seed 3"]
