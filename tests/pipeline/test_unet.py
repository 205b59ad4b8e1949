"""The UNet: initialisation, forward pass, wrong input, export."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import SMALL, TABLE_KEY
from torch import Tensor, nn

from tilecov.pipeline.unet import UNet
from tilecov.pipeline.unet_blocks import ResBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")


@pytest.fixture
def small() -> UNet:
    return UNet(**SMALL).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8), torch.tensor([0, 9])


def loud(model: nn.Module) -> nn.Module:
    """Replace the quiet initial weights, beside which every error would look small."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return model


# --- Initialisation, gradients, training -----------------------------------------------------------------------------


def affine_layers(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            yield name, module.weight.detach(), module.bias.detach()


def test_weights_are_xavier_uniform_with_quiet_ends_and_zero_biases() -> None:
    quiet = []
    for name, weight, bias in affine_layers(UNet(10, 64, [1, 2], [1], 1, 0.0)):
        gain = 1e-5 if name.endswith(("block2.3", "attn.proj", "tail.2")) else 1.0
        quiet += [name] * (gain < 1)
        taps = weight[0, 0].numel()
        bound = gain * math.sqrt(6 / (taps * (weight.shape[0] + weight.shape[1])))
        assert not bias.any(), name
        assert 0.95 * bound < weight.abs().max() <= bound * 1.0001, name
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    assert len(quiet) == 8 + 4 + 1  # blocks: 2 down, 2 middle, 4 up; attention: 1 down, 1 middle, 2 up; the tail


@pytest.fixture(scope="module", params=[28, 64])
def preset(request: pytest.FixtureRequest) -> UNet:
    """The real thing without dropout; 32 and 64 are the same network."""
    torch.manual_seed(0)  # the fixture that seeds the tests comes after this one
    return UNet.preset(request.param).eval()


def test_output_is_near_zero_at_initialisation(preset: UNet) -> None:
    x, t = torch.randn(2, preset.in_channels, 16, 16), torch.tensor([0, 999])
    with torch.no_grad():
        out = preset(x, t)
    assert out.shape == x.shape
    assert 0 < out.abs().max() < 1e-3


def test_gradients_reach_every_row_of_every_parameter(preset: UNet) -> None:
    preset.zero_grad()
    preset(torch.randn(2, preset.in_channels, 16, 16), torch.tensor([5, 900])).square().mean().backward()
    gradients = {name: p.grad for name, p in preset.named_parameters() if p.requires_grad}
    # A bias of the keys adds the same to every score, which softmax takes away: its gradient is zero by mathematics.
    by_mathematics_zero = gradients.pop("middleblocks.0.attn.proj_k.bias")
    assert by_mathematics_zero is not None
    starved = [n for n, g in gradients.items() if g is None or not g.reshape(len(g), -1).any(dim=1).all()]
    assert starved == []


def test_only_the_sinusoids_are_frozen(small: UNet) -> None:
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == [TABLE_KEY]


def test_training_on_one_batch_lowers_the_loss(batch: tuple[Tensor, Tensor]) -> None:
    model = UNet(**SMALL | {"dropout": 0.0}).train()
    noise = torch.randn_like(batch[0])
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = (model(*batch) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.8 * losses[0]


def test_dropout_acts_in_training_only(batch: tuple[Tensor, Tensor]) -> None:
    model = loud(UNet(**SMALL | {"dropout": 0.5}))
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


# --- The forward pass ------------------------------------------------------------------------------------------------


def test_flags_return_the_features(batch: tuple[Tensor, Tensor]) -> None:
    model = loud(UNet(10, 64, [1, 2, 3], [], 1, 0.1)).eval()
    x, t = batch
    out = model(x, t)
    assert out.shape == x.shape
    for flags in ({"return_all_features": True}, {"return_all_features": True, "return_middle_feature": True}):
        again, middle, pretail, temb = model(x, t, **flags)
        assert middle.shape == (2, 192, 2, 2)
        assert pretail.shape == (2, 64, 8, 8)
        assert torch.equal(temb, model.time_embedding(t))
        assert torch.equal(model.tail(pretail), again)
        assert torch.equal(out, again)
    short = model(x, t, return_middle_feature=True)
    assert len(short) == 3
    assert all(map(torch.equal, short, (out, middle, temb)))


def test_skips_join_last_in_first_out(batch: tuple[Tensor, Tensor]) -> None:
    """Each upward block sees, behind its own map, the map of the mirrored downward layer."""
    model = UNet(10, 32, [1, 2, 3], [], 2, 0.0).eval()
    left: list[Tensor] = []
    met: list[Tensor] = []
    for layer in (model.head, *model.downblocks):
        layer.register_forward_hook(lambda _layer, _args, out: left.append(out))
    for layer in model.upblocks:
        if isinstance(layer, ResBlock):
            layer.register_forward_pre_hook(lambda _layer, args: met.append(args[0]))
    model(*batch)
    assert len(met) == len(left)
    for whole, skip in zip(met, reversed(left), strict=True):
        assert torch.equal(whole[:, -skip.shape[1] :], skip)


def test_output_depends_on_each_images_own_step() -> None:
    model = loud(UNet(10, 64, [1, 2], [], 1, 0.0)).eval()
    x = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    first, second, third = model(x, torch.tensor([2, 7, 2]))
    torch.testing.assert_close(first, third)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("change", [{}, {"in_channels": 1, "out_channels": 2}, {"ch_mult": [2]}])
@pytest.mark.parametrize("size", [(8, 8), (4, 10)])
def test_output_has_the_images_size_and_its_own_channels(change: dict[str, Any], size: tuple[int, int]) -> None:
    model = UNet(**SMALL | {"attn": [0]} | change)
    out = model(torch.randn(2, model.in_channels, *size), torch.tensor([1, 2], dtype=torch.int32))
    assert out.shape == (2, change.get("out_channels", 3), *size)


# --- Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": 0}, "T must be a whole number of at least 1 but is 0"),
        ({"ch": 33}, "ch must be even.* is 33"),
        ({"ch": 48}, "ch must be a multiple of 32.* is 48"),
        ({"ch": 0}, "ch must be a whole number"),
        ({"ch": -32}, "ch must be a whole number of at least 1 but is -32"),
        ({"ch": 64.0}, r"ch must be a whole number of at least 1 but is 64\.0"),
        ({"ch_mult": [], "attn": []}, "ch_mult is empty"),
        ({"ch_mult": [1, 0]}, r"ch_mult\[1\] must be a whole number of at least 1 but is 0"),
        ({"ch_mult": [1, 1.5]}, r"ch_mult\[1\].* is 1\.5"),
        ({"attn": [2]}, r"attn names the levels \[2\], but ch_mult has the levels 0 to 1"),
        ({"attn": [0, -1]}, r"attn names the levels \[-1\]"),
        ({"num_res_blocks": 0}, "num_res_blocks must be .* 0"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and less than 1 but is 1\.0"),
        ({"dropout": -0.1}, r"dropout must be .* -0\.1"),
        ({"dropout": math.nan}, "dropout must be .* nan"),
        ({"in_channels": 0}, "in_channels must be .* 0"),
        ({"out_channels": -1}, "out_channels must be .* -1"),
    ],
)
def test_constructor_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL | change)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No preset for 48 pixels: choose from \[28, 32, 64\]"):
        UNet.preset(48)


T2 = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(2, 1, 8, 8), T2, r"x must be \(B, 3, H, W\) but has the shape \(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), T2, r"x must be \(B, 3, H, W\) but has the shape \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 7), T2, "multiples of 2.* x is 8 x 7"),
        (torch.zeros(2, 3, 5, 8), T2, "multiples of 2.* x is 5 x 8"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([1]), r"each of the 2 images but has the shape \(1,\)"),
        (torch.zeros(2, 3, 8, 8), torch.tensor(1), r"shape \(\).*torch\.full"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, dtype=torch.int64), r"shape \(2, 1\)"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0]), r"torch\.float32: use t\.long\(\)"),
    ],
)
def test_forward_refuses(small: UNet, x: Tensor, t: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(x, t)


def test_size_must_halve_once_for_each_level_after_the_first() -> None:
    with torch.device("meta"):
        model, t = UNet.preset(64), torch.zeros(1, dtype=torch.int64)
        assert model(torch.empty(1, 3, 24, 40), t).shape == (1, 3, 24, 40)
        with pytest.raises(ValueError, match=r"multiples of 8.* x is 28 x 28"):
            model(torch.empty(1, 3, 28, 28), t)


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_the_table_is_an_index_error(small: UNet, step: int) -> None:
    with pytest.raises(IndexError):
        small(torch.zeros(1, 3, 8, 8), torch.tensor([step]))


# --- Export and compilation ------------------------------------------------------------------------------------------


def test_exports_for_any_batch_and_any_size(small: UNet, batch: tuple[Tensor, Tensor]) -> None:
    images, half_height, half_width = (torch.export.Dim(n, min=2) for n in ("images", "half_height", "half_width"))
    shapes = {"x": {0: images, 2: 2 * half_height, 3: 2 * half_width}, "t": {0: images}}
    program = torch.export.export(small, batch, dynamic_shapes=shapes)
    x, t = torch.randn(5, 3, 12, 6), torch.arange(5)
    torch.testing.assert_close(program.module()(x, t), small(x, t))


def test_compiles_without_a_graph_break(small: UNet, batch: tuple[Tensor, Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch), small(*batch))


@pytest.mark.slow
def test_compiled_network_has_the_same_gradients(small: UNet, batch: tuple[Tensor, Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(loud(small), backend="aot_eager", fullgraph=True)
    compiled(*batch).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in small.named_parameters() if p.grad is not None}
    small.zero_grad()
    small(*batch).square().mean().backward()
    for name, parameter in small.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own compiler imports what torch deprecates
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_to_machine_code(small: UNet, batch: tuple[Tensor, Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(loud(small), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*batch), small(*batch), atol=1e-4, rtol=1e-3)
