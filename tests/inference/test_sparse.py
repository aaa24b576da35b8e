"""2:4 sparsity, against a loop over groups in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.sparse import keep_2_of_4, prune_2_4


def kept_by_loops(weight: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(weight.shape, dtype=bool)
    outputs, inputs, *rest = weight.shape
    for out in range(outputs):
        for place in np.ndindex(*rest):
            for begin in range(0, inputs, 4):
                group = range(begin, min(begin + 4, inputs))
                best = sorted(group, key=lambda i: (-abs(weight[(out, i, *place)]), i))[:2]
                for i in best:
                    mask[(out, i, *place)] = True
    return mask


@pytest.mark.parametrize(
    "shape", [(3, 8), (2, 1), (2, 3), (4, 6), (3, 7), (2, 8, 3), (2, 5, 3, 2), (2, 4, 1, 2, 2)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_two_largest_of_four_inputs_stay(shape: tuple[int, ...], ties: bool) -> None:
    weight = torch.randn(shape)
    if ties:
        weight = (2 * weight).round()
    mask = keep_2_of_4(weight)
    np.testing.assert_array_equal(mask.numpy(), kept_by_loops(weight.double().numpy()))


def test_the_weights_of_a_network_and_nothing_else() -> None:
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(8, 3),
            "conv": nn.Conv2d(4, 2, 3),
            "up": nn.ConvTranspose2d(4, 4, 2),
            "norm": nn.BatchNorm1d(8),
            "words": nn.Embedding(5, 8),
            "attend": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(8, 4),
        }
    )
    net["tied"] = nn.Linear(8, 3)
    net["tied"].weight = net["linear"].weight
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    pruned = prune_2_4(net)
    assert pruned.names == (
        *("linear.weight", "conv.weight", "attend.in_proj_weight", "attend.out_proj.weight"),
        *("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
    )
    for name, parameter in net.named_parameters():
        wanted = before[name]
        if name in pruned.names:
            wanted = wanted * torch.from_numpy(kept_by_loops(wanted.double().numpy()))
        assert torch.equal(parameter, wanted), name
    sizes = sum(before[name].numel() for name in pruned.names)
    assert (pruned.weights, pruned.zeros) == (sizes, sizes // 2)
    again = prune_2_4(net)
    assert again.zeros == 0


@pytest.mark.parametrize("weight", [None, "w", torch.ones(3), torch.ones(3, 4).long()])
def test_what_is_no_weight_is_refused(weight: Tensor) -> None:
    with pytest.raises(ConfigError, match="give a floating-point tensor"):
        keep_2_of_4(weight)
