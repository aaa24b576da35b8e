"""MaskedLinear and MaskedConv2d stand in for the plain layers, with a mask and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear, MaskedWeights
from tests.support.masked_layer_cases import (
    Make,
    batch_for,
    conv,
    each_layer,
    gradients,
    linear,
    logits_for,
    masked_values,
    plain_of,
)

CONVS: list[Any] = [
    pytest.param({}, id="default"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"stride": 2, "padding": (1, 2)}, id="stride-padding"),
    pytest.param({"dilation": (2, 1), "groups": 2}, id="dilation-groups"),
    pytest.param({"padding": "same", "dilation": 2}, id="same"),
    pytest.param({"padding": "valid"}, id="valid"),
    pytest.param({"padding": 2, "padding_mode": "reflect"}, id="reflect"),
    pytest.param({"padding": (1, 2), "padding_mode": "circular", "stride": 2}, id="circular"),
    pytest.param({"padding": "same", "padding_mode": "replicate"}, id="same-replicate"),
]


class TestConstructor:
    def test_arguments_are_those_of_the_plain_layers(self) -> None:
        layer = MaskedLinear(6, 4, False, "cpu", torch.float64)
        assert layer.bias is None
        assert layer.weight.dtype == torch.float64
        nine = (2, 4, (3, 1), 2, 1, 1, 2, True, "circular")
        masked, plain = MaskedConv2d(*nine, dtype=torch.float64), nn.Conv2d(*nine)
        assert repr(masked) == repr(plain).replace("Conv2d(", "MaskedConv2d(", 1).replace(
            "circular)", "circular, mask=none)"
        )

    @each_layer
    def test_initialisation_is_the_plain_layers(self, make: Make) -> None:
        layer = make()
        torch.manual_seed(5)
        layer.reset_parameters()
        plain = plain_of(layer)
        torch.manual_seed(5)
        plain.reset_parameters()
        assert torch.equal(layer.weight, plain.weight)
        assert torch.equal(layer.bias, plain.bias)

    @each_layer
    def test_meta_device(self, make: Make) -> None:
        layer = make(device="meta")
        layer.set_mask(layer.weight, layer.bias, sparsity=30)
        out = layer(batch_for(layer).to("meta"))
        assert out.is_meta
        layer.clear_mask()
        assert layer.to_empty(device="cpu")(batch_for(layer)).shape == out.shape

    @each_layer
    def test_state_dict_loads_strictly_both_ways(self, make: Make) -> None:
        layer, other = make(), make()
        plain = plain_of(other)
        layer.set_mask(*logits_for(layer))
        assert layer.state_dict().keys() == plain.state_dict().keys()
        layer.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(layer.weight, other.weight)
        plain.load_state_dict(make().state_dict(), strict=True)

    def test_repr_names_the_mask(self) -> None:
        layer = linear()
        assert repr(layer).endswith("in_features=6, out_features=4, bias=True, mask=none)")
        with layer.masked(*logits_for(layer), sparsity=30.0):
            assert repr(layer).endswith("mask=logits)")
        layer.mask_source = "hyper(p=50)"
        with layer.masked(*logits_for(layer)):
            assert repr(layer).endswith("mask=logits)")
        assert repr(layer).endswith("mask=hyper(p=50))")


class TestPlain:
    def check(self, layer: Any, x: Tensor) -> None:
        plain = plain_of(layer)
        x.requires_grad_()
        parameters = [p for p in layer.parameters()]
        out, expected = layer(x), plain(x)
        assert torch.equal(out, expected)
        for ours, theirs in zip(
            gradients(out, x, *parameters), gradients(expected, x, *plain.parameters()), strict=True
        ):
            assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("bias", [True, False])
    def test_linear_is_bit_equal_without_a_mask(self, bias: bool) -> None:
        layer = linear(bias=bias)
        self.check(layer, batch_for(layer))

    @pytest.mark.parametrize("options", CONVS)
    def test_conv_is_bit_equal_without_a_mask(self, options: dict[str, Any]) -> None:
        layer = conv(**options)
        self.check(layer, batch_for(layer))

    @each_layer
    def test_is_plain_again_after_the_mask_is_cleared(self, make: Make) -> None:
        layer = make()
        layer.set_mask(*logits_for(layer), sparsity=30)
        layer.clear_mask()
        self.check(layer, batch_for(layer))
        layer.clear_mask()


class TestMask:
    def check(self, layer: Any, x: Tensor, p: float = 30) -> None:
        """Outputs and gradients are those of a plain layer whose parameters are the products."""
        zw, zb = logits_for(layer)
        leaves = [zw, *([] if zb is None else [zb]), *layer.parameters()]
        leaves += [x.requires_grad_()] if x.numel() else []
        values = masked_values(layer, zw, zb, p)
        plain = plain_of(layer)
        expected = functional_call(plain, values, (x,))
        with layer.masked(zw, zb, sparsity=p) as active:
            assert active is layer
            given_logits = layer(x)
        assert layer.active is None
        layer.active = MaskedWeights(values["weight"], values.get("bias"))
        given_products = layer(x)
        layer.clear_mask()
        theirs = gradients(expected, *leaves)
        for out in (given_logits, given_products):
            assert torch.equal(out, expected)
            assert out.stride() == expected.stride()
            for a, b in zip(gradients(out, *leaves), theirs, strict=True):
                torch.testing.assert_close(a, b)

    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param((3, 6), id="batch"),
            pytest.param((6,), id="one-vector"),
            pytest.param((1, 6), id="batch-of-one"),
            pytest.param((0, 6), id="empty"),
            pytest.param((2, 5, 6), id="3d"),
            pytest.param((2, 1, 3, 6), id="4d"),
        ],
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_linear(self, shape: tuple[int, ...], bias: bool) -> None:
        self.check(linear(bias=bias), torch.randn(shape))

    @pytest.mark.parametrize("options", CONVS)
    def test_conv(self, options: dict[str, Any]) -> None:
        self.check(conv(**options), torch.randn(3, 2, 7, 8))

    @pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
    @pytest.mark.parametrize("shape", [(2, 7, 8), (0, 2, 7, 8), (1, 2, 7, 8)])
    def test_conv_unbatched_empty_and_single(
        self, shape: tuple[int, ...], padding_mode: str
    ) -> None:
        self.check(conv(padding=1, padding_mode=padding_mode), torch.randn(shape))

    @each_layer
    def test_input_that_is_not_contiguous(self, make: Make) -> None:
        layer = make()
        x = batch_for(layer)
        self.check(layer, torch.stack((x, x), dim=-1)[..., 1])
        self.check(layer, x.transpose(0, -1).contiguous().transpose(0, -1))

    @pytest.mark.parametrize("weight_too", [False, True])
    @pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
    def test_channels_last_goes_through(self, weight_too: bool, padding_mode: str) -> None:
        layer = conv(padding=1, padding_mode=padding_mode)
        if weight_too:
            layer.to(memory_format=torch.channels_last)
        x = torch.randn(3, 2, 7, 8).to(memory_format=torch.channels_last)
        layer.set_mask(*logits_for(layer), sparsity=30)
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        layer.clear_mask()
        self.check(layer, x)

    @each_layer
    @pytest.mark.parametrize("p", [0, 100])
    def test_sparsity_extremes(self, make: Make, p: float) -> None:
        layer = make()
        self.check(layer, batch_for(layer), p)

    def test_bias_stays_unmasked_without_logits_of_its_own(self) -> None:
        layer = linear()
        zw, _ = logits_for(layer)
        with layer.masked(zw, sparsity=100):
            out = layer(torch.zeros(1, 6))
        assert torch.equal(out[0], layer.bias)

    @each_layer
    def test_gradients_reach_logits_twice(self, make: Make) -> None:
        layer = make(dtype=torch.float64)
        x = batch_for(layer).double()
        z = torch.randn(layer.weight.shape, dtype=torch.float64, requires_grad=True)

        def loss(z: Tensor) -> Tensor:
            with layer.masked(z):
                return layer(x).square().sum()

        assert torch.autograd.gradcheck(loss, (z,), fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, (z,), fast_mode=True)

    @each_layer
    def test_functional_call_replaces_the_weights_that_are_masked(self, make: Make) -> None:
        layer = make()
        x, weight = batch_for(layer), torch.randn(layer.weight.shape)
        zw, zb = logits_for(layer)
        with layer.masked(zw, zb, sparsity=30):
            out = functional_call(layer, {"weight": weight}, (x,))
        with torch.no_grad():
            layer.weight.copy_(weight)
            with layer.masked(zw, zb, sparsity=30):
                assert torch.equal(layer(x), out)

    def test_masks_nest_and_end_with_an_exception(self) -> None:
        layer = linear()
        x, outer, inner = batch_for(layer), logits_for(layer), logits_for(layer)

        def fail() -> None:
            with layer.masked(*inner):
                raise KeyError("inside")

        with layer.masked(*outer, sparsity=30):
            before = layer(x)
            with layer.masked(*inner):
                assert not torch.equal(layer(x), before)
            assert torch.equal(layer(x), before)
            with pytest.raises(KeyError):
                fail()
            assert torch.equal(layer(x), before)
        assert "active" not in vars(layer)
        assert "mask_source" not in vars(layer)

    def test_a_mask_that_does_not_fit_changes_nothing(self) -> None:
        layer = linear()
        layer.set_mask(*logits_for(layer))
        before = layer.active
        for arguments, sparsity, message in (
            ((torch.ones(6, 4),), 0, r"weight_logits has shape \(6, 4\)"),
            ((torch.ones(4, 6), torch.ones(6)), 0, r"bias_logits has shape \(6,\)"),
            ((torch.ones(4, 6),), 101, "sparsity is 101"),
        ):
            with pytest.raises(ValueError, match=message):
                layer.set_mask(*arguments, sparsity=sparsity)
            assert layer.active is before
        with pytest.raises(TypeError, match="weight_logits is a NoneType"):
            layer.set_mask(None)
        with pytest.raises(ValueError, match="the bias is None"):
            linear(bias=False).set_mask(torch.ones(4, 6), torch.ones(4))

    @each_layer
    def test_hooks_fire(self, make: Make) -> None:
        layer = make()
        seen: list[str] = []
        layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
        layer.register_forward_hook(lambda *_: seen.append("forward"))
        layer.register_full_backward_hook(lambda *_: seen.append("backward"))
        layer.set_mask(*logits_for(layer), sparsity=30)
        layer(batch_for(layer).requires_grad_()).sum().backward()
        assert seen == ["pre", "forward", "backward"]


class TestPrecision:
    @each_layer
    def test_autocast_forms_the_mask_in_float32(self, make: Make) -> None:
        layer = make()
        weight = layer.weight
        x, (zw, zb) = batch_for(layer), logits_for(layer)
        values = masked_values(layer, zw, zb, 30)
        rounded = {name: value.bfloat16() for name, value in values.items()}
        plain = plain_of(layer).bfloat16()
        expected = functional_call(plain, rounded, (x.bfloat16(),))
        with torch.autocast("cpu", torch.bfloat16):
            with layer.masked(zw, zb, sparsity=30):
                out = layer(x)
            layer.active = MaskedWeights(values["weight"], values["bias"])
            given_products = layer(x)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, expected)
        assert torch.equal(given_products, expected)
        grads = gradients(out.float(), zw, weight)
        assert [g.dtype for g in grads] == [torch.float32] * 2

    @each_layer
    @pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16])
    def test_bfloat16_weights(self, make: Make, logits_dtype: torch.dtype) -> None:
        layer = make(dtype=torch.bfloat16)
        zw, zb = (z.to(logits_dtype) for z in logits_for(layer))
        x = batch_for(layer).bfloat16()
        values = {k: v.bfloat16() for k, v in masked_values(layer, zw, zb, 30).items()}
        with layer.masked(zw, zb, sparsity=30):
            out = layer(x)
        assert torch.equal(out, functional_call(plain_of(layer), values, (x,)))
        assert gradients(out.float(), layer.weight)[0].dtype == torch.bfloat16
