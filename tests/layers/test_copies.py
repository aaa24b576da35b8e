"""Masked layers from plain ones and back, and their copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hypermask_fast import HyperMask, export_subnet
from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear, MaskedWeights
from tests.support.masked_layer_cases import (
    Make,
    batch_for,
    each_layer,
    gradients,
    linear,
    logits_for,
    masked_values,
    plain_of,
)


def masked_copy(plain: Any, share: bool) -> Any:
    if isinstance(plain, nn.Linear):
        return MaskedLinear.from_linear(plain, share=share)
    return MaskedConv2d.from_conv2d(plain, share=share)


def plain_copy(layer: Any, share: bool = True) -> Any:
    if isinstance(layer, MaskedLinear):
        return layer.to_linear(share=share)
    return layer.to_conv2d(share=share)


class TestConversion:
    @each_layer
    @pytest.mark.parametrize("share", [True, False])
    def test_from_plain(self, make: Make, share: bool) -> None:
        plain = plain_of(make(dtype=torch.float64)).eval()
        plain.bias.requires_grad_(False)
        calls: list[nn.Module] = []
        plain.register_forward_hook(lambda module, *_: calls.append(module))
        before = dict(vars(plain))
        layer = masked_copy(plain, share)
        assert type(layer) is type(make())
        assert type(plain) is layer.plain
        assert vars(plain) == before
        assert (layer.weight is plain.weight) is share
        assert (layer.weight.data_ptr() == plain.weight.data_ptr()) is share
        assert layer.weight.dtype == torch.float64
        assert layer.weight.requires_grad
        assert not layer.bias.requires_grad
        assert not layer.training
        x = batch_for(layer).double()
        assert torch.equal(layer(x), plain(x))
        assert calls == [layer, plain]

    @each_layer
    @pytest.mark.parametrize("share", [True, False])
    def test_later_registrations_stay_with_one_layer(self, make: Make, share: bool) -> None:
        plain = plain_of(make())
        layer = masked_copy(plain, share)
        calls: list[nn.Module] = []
        handle = layer.register_forward_hook(lambda module, *_: calls.append(module))
        weight = plain.weight
        layer.weight = nn.Parameter(torch.zeros_like(weight))
        plain.register_buffer("extra", torch.ones(1))
        assert plain.weight is weight
        assert list(layer.state_dict()) == ["weight", "bias"]
        plain(batch_for(plain))
        assert calls == []
        layer(batch_for(plain))
        assert calls == [layer]
        handle.remove()
        assert not layer._forward_hooks

    @each_layer
    @pytest.mark.parametrize("share", [True, False])
    def test_to_plain_without_a_mask(self, make: Make, share: bool) -> None:
        layer = make()
        layer.mask_source = "hyper(p=30)"
        plain = plain_copy(layer, share)
        assert type(plain) is layer.plain
        assert repr(plain) == repr(plain_of(layer))
        assert vars(plain).keys() == vars(plain_of(layer)).keys()
        assert (plain.weight is layer.weight) is share
        x = batch_for(layer)
        assert torch.equal(plain(x), layer(x))
        assert layer.mask_source == "hyper(p=30)"

    @each_layer
    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("bias_masked", [True, False])
    def test_to_plain_multiplies_the_mask_in(
        self, make: Make, share: bool, bias_masked: bool
    ) -> None:
        layer = make().eval()
        layer.bias.requires_grad_(False)
        weight = layer.weight
        zw, zb = logits_for(layer)
        layer.set_mask(zw, zb if bias_masked else None, sparsity=30)
        plain = plain_copy(layer, share)
        x = batch_for(layer)
        assert torch.equal(plain(x), layer(x))
        assert layer.weight is weight
        assert plain.weight.is_leaf
        assert plain.weight.requires_grad
        assert not plain.bias.requires_grad
        assert not plain.training
        assert list(plain.state_dict()) == ["weight", "bias"]
        layer.clear_mask()
        assert not torch.equal(plain(x), layer(x))
        with torch.no_grad():
            plain.bias.add_(1)
        assert not torch.equal(plain.bias, layer.bias)

    def test_to_plain_with_products(self) -> None:
        layer = linear()
        layer.active = MaskedWeights(layer.weight * 2, None)
        plain = layer.to_linear()
        assert plain.bias is None
        x = batch_for(layer)
        assert torch.equal(plain(x), layer(x))
        layer = linear(bias=False)
        layer.set_mask(logits_for(layer)[0], sparsity=50)
        assert torch.equal(layer.to_linear()(x), layer(x))

    def test_round_trip_of_a_padded_conv(self) -> None:
        plain = nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect", groups=2)
        back = MaskedConv2d.from_conv2d(plain).to_conv2d()
        assert back.weight is plain.weight
        assert vars(back).keys() == vars(plain).keys()
        x = batch_for(plain)
        assert torch.equal(back(x), plain(x))

    def test_layers_without_a_plain_forward_or_parameter_are_refused(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        for layer, message in (
            (nn.Conv1d(2, 3, 1), r"linear is a Conv1d; give an nn\.Linear"),
            (Scaled(2, 3), "linear is a Scaled with a forward of its own"),
            (nn.LazyLinear(3), "linear is a LazyLinear without a shape yet; run one batch"),
            (
                parametrizations.weight_norm(nn.Linear(2, 3)),
                "linear is a ParametrizedLinear whose weight is computed and not a parameter",
            ),
            (
                prune.l1_unstructured(nn.Linear(2, 3), "bias", 1),
                "linear is a Linear whose bias is computed and not a parameter; remove its",
            ),
        ):
            with pytest.raises(TypeError, match=message):
                MaskedLinear.from_linear(layer)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"conv is a Linear; give an nn\.Conv2d"):
            MaskedConv2d.from_conv2d(nn.Linear(2, 3))  # type: ignore[arg-type]

    def test_subclasses_with_the_plain_forward_are_converted(self) -> None:
        subclass = nn.modules.linear.NonDynamicallyQuantizableLinear(6, 4)
        assert type(MaskedLinear.from_linear(subclass)) is MaskedLinear
        assert type(MaskedLinear.from_linear(linear())) is MaskedLinear


def by_pickle(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


def by_save(layer: Any) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(by_pickle, id="pickle"),
    pytest.param(by_save, id="save"),
]


class TestCopies:
    @each_layer
    @pytest.mark.parametrize("duplicate", COPIES)
    def test_without_a_mask(self, make: Make, duplicate: Callable[[Any], Any]) -> None:
        layer = make()
        twin = duplicate(layer)
        assert vars(twin).keys() == vars(layer).keys()
        x = batch_for(layer)
        assert torch.equal(twin(x), layer(x))
        assert twin.weight.data_ptr() != layer.weight.data_ptr()

    @each_layer
    @pytest.mark.parametrize("duplicate", COPIES)
    @pytest.mark.parametrize("products", [False, True])
    def test_with_a_mask(self, make: Make, duplicate: Callable[[Any], Any], products: bool) -> None:
        """The copy computes the same outputs, and nothing leads back to the hypernetwork."""
        layer = make()
        zw, zb = logits_for(layer)
        layer.set_mask(zw, zb, sparsity=30)
        if products:
            values = masked_values(layer, zw, zb, 30)
            layer.active = MaskedWeights(values["weight"], values["bias"])
        mask = layer.active
        twin = duplicate(layer)
        assert layer.active is mask
        assert type(twin.active) is type(mask)
        assert repr(twin) == repr(layer)
        x = batch_for(layer)
        assert torch.equal(twin(x), layer(x))
        assert not any(t is not None and t.requires_grad for t in twin.active)
        twin.clear_mask()
        assert twin(x).requires_grad
        assert torch.equal(layer.active[0], mask[0])

    @pytest.mark.parametrize("duplicate", COPIES)
    def test_logits_that_are_parameters_stay_the_models(
        self, duplicate: Callable[[Any], Any]
    ) -> None:
        model = nn.ModuleDict({"layer": linear()})
        model.register_parameter("scores", nn.Parameter(torch.randn(4, 6)))
        model["layer"].set_mask(model.scores, sparsity=30)
        twin = duplicate(model)
        assert twin["layer"].active.weight is twin.scores
        assert twin.scores is not model.scores

    @pytest.mark.parametrize("duplicate", COPIES[1:])
    def test_a_file_holds_no_more_than_the_layers_own_part_of_the_logits(
        self, duplicate: Callable[[Any], Any]
    ) -> None:
        layer = linear()
        flat = torch.randn(1000, requires_grad=True) * 2
        layer.set_mask(flat[:24].view(4, 6))
        assert duplicate(layer).active.weight.untyped_storage().nbytes() == 24 * 4

    @each_layer
    def test_shallow_copy_shares_parameters_and_mask(self, make: Make) -> None:
        layer = make()
        zw, zb = logits_for(layer)
        layer.set_mask(zw, zb, sparsity=30)
        twin = copy.copy(layer)
        assert twin.weight is layer.weight
        x = batch_for(layer)
        ours, theirs = (gradients(m(x), zw, m.weight) for m in (layer, twin))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        twin.clear_mask()
        assert layer.active is not None
        assert torch.equal(copy.copy(twin)(x), plain_of(layer)(x))


class TestCompiledLayers:
    """``layer.compile()`` compiles that layer's call, which no copy takes with it."""

    @staticmethod
    def compiled(make: Make) -> tuple[Any, Any]:
        layer = make()
        layer.compile(backend="eager")
        zw, zb = logits_for(layer)
        layer.set_mask(zw, zb, sparsity=30)
        x = batch_for(layer)
        return layer, (x, layer(x).detach())

    @each_layer
    @pytest.mark.parametrize("duplicate", [*COPIES, pytest.param(copy.copy, id="copy")])
    def test_copies_run_their_own_mask(self, make: Make, duplicate: Callable[[Any], Any]) -> None:
        layer, (x, expected) = self.compiled(make)
        twin = duplicate(layer)
        assert torch.equal(twin(x), expected)
        layer.clear_mask()
        assert torch.equal(twin(x), expected)

    @each_layer
    @pytest.mark.parametrize("share", [True, False])
    def test_plain_layers_have_the_mask_folded_in(self, make: Make, share: bool) -> None:
        layer, (x, expected) = self.compiled(make)
        plain = plain_copy(layer, share)
        assert torch.equal(plain(x), expected)
        plain.compile(backend="eager")
        assert torch.equal(plain(x), expected)
        assert torch.equal(masked_copy(plain, share)(x), expected)

    def test_an_exported_network_is_not_the_learners(self) -> None:
        learner = HyperMask(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
        task, x = learner.add_task(), torch.randn(6, 5)
        for module in (*learner.net, learner.net):
            module.compile(backend="eager")
        expected = learner.eval()(x, task).detach()
        net = export_subnet(learner, task)
        assert torch.equal(net(x), expected)
        assert torch.equal(by_save(net)(x), expected)
        assert torch.equal(copy.deepcopy(learner)(x, task), expected)
