"""The methods beside HyperMask, and their networks: wrong arguments of their constructors."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import torch
from torch import nn

import hypermask_fast as hmf
from tests.malformed.subjects import Subject
from tests.malformed.values import NOT_COUNTS, NOT_MODULES, NOT_NUMBERS

FLAGS: list[Any] = ["yes", 1, None]
WORDS: list[Any] = [3, None, True, ["top_k"], "other"]
FACTORS: list[Any] = [*NOT_NUMBERS, nan, inf, -0.1]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))


def build(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda made, **arguments: method(**{"net": made, **arguments})


def replaying(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda made, **arguments: method(
        **{"net": made, "input_shape": (5,), **SMALL_REPLAY, **arguments}
    )


def network(cls: Callable[..., nn.Module]) -> Callable[..., Any]:
    return lambda _, **arguments: cls(**arguments)


def nothing() -> None:
    return None


def supsup() -> hmf.SupSup:
    made = hmf.SupSup(plain())
    for task in range(2):
        made.add_task()
        made.begin_task(task)
        made.end_task()
    return made.eval()


SMALL_REPLAY: dict[str, Any] = {"encoder_hidden": (4,), "decoder_hidden": (4,), "latent_dim": 2}
_REPLAY: dict[str, Any] = {
    **{"input_shape": ["5", 3, None, (), (0,), (1.5,)], "capacity": NOT_COUNTS},
    **{"encoder_hidden": ["3", [0], [1.5]], "decoder_hidden": ["3", [0]], "latent_dim": NOT_COUNTS},
    **{"conditions": ["3", -1, 1.5, None], "replay_chunk_size": NOT_COUNTS},
    **{"replay_activation": WORDS, "replay_beta": FACTORS, "replay_weight": [*FACTORS, 1.5]},
    **{"task_heads": WORDS, "settings": [3, "x", {}], "net": NOT_MODULES},
}
_NET: dict[str, Any] = {"net": NOT_MODULES, "exclude": [3, ["none"], [3]], "settings": [3, "x", {}]}

SUBJECTS = [
    Subject("HNET", plain, build(hmf.HNET), {},
            {**_NET, "embedding_dim": NOT_COUNTS, "hidden": ["3", [0], [1.5]], "head": WORDS,
             "chunk_size": NOT_COUNTS, "capacity": NOT_COUNTS, "task_heads": WORDS,
             "beta": FACTORS, "lookahead": FLAGS, "targets": WORDS, "bn": WORDS}),
    Subject("HNETTIR", plain, replaying(hmf.HNETTIR), {},
            {**_REPLAY, "exclude": [3, ["none"], [3]], "beta": FACTORS, "lookahead": FLAGS,
             "task_hidden": ["3", [0], [1.5]]}),
    Subject("HNETR", plain, replaying(hmf.HNETR), {},
            {**_REPLAY, "temperature": [*FACTORS, 0.0]}),
    Subject("HyperInterval", plain, build(hmf.HyperInterval), {},
            {**_NET, "mode": WORDS, "embedding_dim": NOT_COUNTS, "capacity": NOT_COUNTS,
             "extent": FACTORS, "kappa": [*FACTORS, 1.5], "arithmetic": WORDS, "beta": FACTORS}),
    Subject("SupSup", plain, build(hmf.SupSup), {},
            {**_NET, "rule": WORDS, "score_init": WORDS, "keep_scores": ["yes", 1, None],
             "superfluous": [-1, "3", None, 1.5]}),
    Subject("ExSSNeT", plain, build(hmf.ExSSNeT), {},
            {**_NET, "editable": WORDS, "mask_share": FACTORS, "kkt": WORDS,
             "kkt_neighbours": NOT_COUNTS, "kkt_batch": NOT_COUNTS}),
    Subject("one_shot", supsup, lambda it, **a: hmf.one_shot(**{"learner": it, **a}),
            {"x": torch.ones(4, 5)},
            {"learner": [3, None, nn.Linear(2, 2)], "x": [3, None, [[1.0]]],
             "objective": WORDS, "tasks": [[5], [-1], []]}),
    Subject("FC1024", nothing, network(hmf.networks.FC1024), {"in_features": 4, "num_classes": 3},
            {"in_features": NOT_COUNTS, "num_classes": NOT_COUNTS}),
    Subject("GEMResNet18", nothing, network(hmf.networks.GEMResNet18), {"num_classes": 3},
            {"num_classes": NOT_COUNTS, "in_channels": NOT_COUNTS}),
]  # fmt: skip
