"""Operations, layers and hypernetworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import hypermask_fast as hmf
from hypermask_fast import functional
from tests.malformed.subjects import Subject
from tests.malformed.values import (
    NOT_BACKENDS,
    NOT_COUNTS,
    NOT_MODULES,
    NOT_TENSORS,
    PERCENTS,
    X,
    nan,
)

Z, IDS = torch.randn(4, 5), torch.tensor([0, 1])
NOT_LOGITS = [*NOT_TENSORS, Z.long(), Z > 0, torch.empty(0), Z.to(torch.complex64)]
TENSOR_PERCENTS = [torch.ones(2), torch.tensor([30.0]), torch.tensor(True), torch.tensor(3j)]
TENSOR_PERCENTS += [torch.tensor(nan), torch.tensor(101.0), torch.tensor(-1)]
W4 = [torch.randn(5, 4), torch.randn(4, 6), torch.randn(20), torch.randn(4, 5, dtype=torch.float64)]
W4 += [torch.randn(4, 5).to("meta"), torch.ones(4, 5).long()]
B4 = [torch.randn(5), torch.randn(4, 1), torch.ones(4).long(), torch.tensor(1.0), "b", 3, [1.0] * 4]
B4 += [torch.randn(4, dtype=torch.float64), torch.randn(4).to("meta")]
CUTS: list[Any] = ["x", 0.3, torch.ones(4), torch.ones(1), torch.tensor(1), torch.tensor(True)]
CUTS += [torch.tensor(0.3, device="meta")]
X_LINEAR = [*NOT_TENSORS, X[:, :4], X.double(), X.long(), X.half(), X.to("meta"), torch.tensor(1.0)]
IMAGES = torch.randn(2, 3, 6, 6)
X_CONV = [*NOT_TENSORS, X, IMAGES[:, :2], IMAGES.double(), IMAGES.long(), IMAGES.to("meta")]
X_CONV += [IMAGES[None], torch.tensor(1.0), IMAGES[..., :2, :]]
FILTERS, BIAS = torch.randn(4, 3, 3, 3), torch.randn(4)
SIZES: list[Any] = [
    0,
    -1,
    1.5,
    "1",
    (1, 2, 3),
    (1,) * 0,
    [1, "2"],
    None,
    True,
    torch.tensor([1, 1]),
]

LINEAR = {"x": X, "weight": Z, "bias": BIAS, "weight_logits": Z, "bias_logits": BIAS}
CONV = {**LINEAR, "x": IMAGES, "weight": FILTERS, "weight_logits": FILTERS}
MASKING: dict[str, Any] = {
    "weight_logits": [*NOT_LOGITS[1:], torch.randn(5, 4), Z.to("meta")],
    "bias_logits": [*B4[:7], "z", torch.randn(4).to("meta")],
    "sparsity": [*PERCENTS, *TENSOR_PERCENTS[:4]],
}


def layer() -> Any:
    return hmf.MaskedLinear(5, 4)


def masked_layer() -> Any:
    made = layer()
    made.set_mask(Z, sparsity=30.0)
    return made


def conv() -> Any:
    return hmf.MaskedConv2d(3, 4, 3)


def masked_conv() -> Any:
    made = conv()
    made.set_mask(FILTERS, sparsity=30.0)
    return made


def hypernetwork() -> Any:
    return hmf.Hypernetwork(7, embedding_dim=3, capacity=4)


def chunked() -> Any:
    return hmf.ChunkedHypernetwork(
        7, embedding_dim=3, capacity=4, chunk_size=3, chunk_embedding_dim=2
    )


def nothing() -> None:
    return None


def enter(context: Any) -> None:
    with context:
        pass


SHARED = {
    "embedding_dim": NOT_COUNTS,
    "capacity": NOT_COUNTS,
    "num_outputs": NOT_COUNTS,
    "hidden": [3, "3", None, [0], [1.5], ["2"], [True], object()],
    "activation": [3, None, "gelu", ["elu"], True],
}
IDS_BAD: list[Any] = [None, 0, "0", [0, 1], np.array([0]), torch.tensor([4]), torch.tensor([-1])]
IDS_BAD += [torch.tensor([0.5]), torch.tensor([True]), torch.tensor(0), torch.tensor([[0]])]
IDS_BAD += [torch.empty(0, dtype=torch.int64), IDS.to("meta")]

SUBJECTS = [
    Subject(
        "mask_threshold",
        nothing,
        lambda _, **a: functional.mask_threshold(**a),
        {"logits": Z, "sparsity": 30.0},
        {
            "logits": NOT_LOGITS,
            "sparsity": [*PERCENTS, *TENSOR_PERCENTS[:4]],
            "backend": NOT_BACKENDS,
        },
    ),
    Subject(
        "semi_binary_mask",
        nothing,
        lambda _, **a: functional.semi_binary_mask(**a),
        {"logits": Z, "sparsity": 30.0},
        {"logits": NOT_LOGITS, "sparsity": PERCENTS, "backend": NOT_BACKENDS},
    ),
    Subject(
        "masked_linear",
        nothing,
        lambda _, **a: functional.masked_linear(**a),
        LINEAR,
        {
            "x": X_LINEAR,
            "weight": [*NOT_TENSORS, *W4, torch.randn(4)],
            "bias": B4,
            "weight_logits": MASKING["weight_logits"],
            "bias_logits": MASKING["bias_logits"],
            "weight_threshold": CUTS,
            "bias_threshold": CUTS,
            "bias,bias_logits": [(None, BIAS), (torch.randn(5), torch.randn(5))],
            "bias_logits,bias_threshold": [(None, torch.tensor(0.5))],
            "backend": NOT_BACKENDS,
        },
    ),
    Subject(
        "masked_conv2d",
        nothing,
        lambda _, **a: functional.masked_conv2d(**a),
        CONV,
        {
            "x": X_CONV,
            "weight": [*NOT_TENSORS, Z, FILTERS.double(), FILTERS.to("meta")],
            "bias": B4,
            "weight_logits": [*NOT_LOGITS[1:], FILTERS[:3]],
            "weight_threshold": CUTS,
            "stride": SIZES,
            "dilation": SIZES,
            "padding": [-1, 1.5, "full", (1, 2, 3), None, [1, "2"], True],
            "groups": [0, 2, -1, 1.5, "1", None, True],
            "stride,padding": [(2, "same")],
            "backend": NOT_BACKENDS,
        },
    ),
    Subject("backend", nothing, lambda _, name: enter(hmf.backend(name)), {"name": "auto"},
            {"name": [*NOT_BACKENDS, None, ""]}),
    Subject("explain", layer, lambda it, **a: hmf.explain(a.get("module", it), X), {},
            {"module": NOT_MODULES}),
    Subject("MaskedLinear.set_mask", layer, lambda it, **a: it.set_mask(**a),
            {"weight_logits": Z}, MASKING),
    Subject("MaskedLinear.masked", layer, lambda it, **a: enter(it.masked(**a)),
            {"weight_logits": Z}, MASKING),
    Subject("MaskedConv2d.set_mask", conv, lambda it, **a: it.set_mask(**a),
            {"weight_logits": FILTERS},
            {"weight_logits": [*NOT_LOGITS[1:], Z], "sparsity": PERCENTS}),
    Subject("MaskedLinear.forward", masked_layer, lambda it, x: it(x), {"x": X}, {"x": X_LINEAR}),
    Subject("MaskedConv2d.forward", masked_conv, lambda it, x: it(x), {"x": IMAGES}, {"x": X_CONV}),
    Subject("MaskedLinear.from_linear", nothing, lambda _, **a: hmf.MaskedLinear.from_linear(**a),
            {"linear": nn.Linear(5, 4)}, {"linear": [*NOT_MODULES, nn.Conv2d(1, 1, 1)]}),
    Subject("MaskedConv2d.from_conv2d", nothing, lambda _, **a: hmf.MaskedConv2d.from_conv2d(**a),
            {"conv": nn.Conv2d(3, 4, 3)}, {"conv": [*NOT_MODULES, nn.Linear(1, 1)]}),
    Subject("Hypernetwork", nothing, lambda _, **a: hmf.Hypernetwork(**a),
            {"num_outputs": 7, "embedding_dim": 3}, SHARED),
    Subject(
        "ChunkedHypernetwork",
        nothing,
        lambda _, **a: hmf.ChunkedHypernetwork(**a),
        {"num_outputs": 7, "embedding_dim": 3, "chunk_size": 3, "chunk_embedding_dim": 2},
        {**SHARED, "chunk_size": NOT_COUNTS, "chunk_embedding_dim": NOT_COUNTS},
    ),
    Subject("Hypernetwork.logits", hypernetwork, lambda it, ids: it.logits(ids), {"ids": IDS},
            {"ids": IDS_BAD}),
    Subject("Hypernetwork.forward", hypernetwork, lambda it, ids, **a: it(ids, **a), {"ids": IDS},
            {"ids": IDS_BAD,
             "kept": ["k", [1.0], torch.ones(1, 6), torch.ones(2, 7), torch.ones(7)]}),
    Subject("ChunkedHypernetwork.logits", chunked, lambda it, ids: it.logits(ids), {"ids": IDS},
            {"ids": IDS_BAD}),
    Subject("Hypernetwork.grow", hypernetwork, lambda it, capacity: it.grow(capacity),
            {"capacity": 8}, {"capacity": ["8", None, 1.5, True, [8], 0, -1, 3]}),
]  # fmt: skip
