"""The UNet: names and shapes of its state dict, initialisation, forward pass, wrong input, export."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tilecov.pipeline.unet import PRESETS, UNet
from tilecov.pipeline.unet_blocks import ResBlock
from tilecov.pipeline.unet_checkpoint import infer_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL: dict[str, Any] = {"T": 10, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1, "dropout": 0.1}
TABLE_KEY = "time_embedding.timembedding.0.weight"

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small networks only: on a busy machine, threads waiting for each other make them ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> UNet:
    return UNet(**SMALL).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8), torch.tensor([0, 9])


def on_meta(**arguments: Any) -> UNet:
    with torch.device("meta"):
        return UNet(**arguments)


def loud(model: nn.Module) -> nn.Module:
    """Replace the quiet initial weights, beside which every error would look small."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return model


# --- The state dict, counted again from first principles -------------------------------------------------------------


def conv_shapes(name: str, n_in: int, n_out: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (n_out, n_in, kernel, kernel), f"{name}.bias": (n_out,)}


def linear_shapes(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm_shapes(name: str, n: int) -> Shapes:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def attn_shapes(name: str, n: int) -> Shapes:
    shapes = norm_shapes(f"{name}.group_norm", n)
    for part in ("proj_q", "proj_k", "proj_v", "proj"):
        shapes |= conv_shapes(f"{name}.{part}", n, n, 1)
    return shapes


def block_shapes(name: str, n_in: int, n_out: int, tdim: int, *, attends: bool) -> Shapes:
    return (
        norm_shapes(f"{name}.block1.0", n_in)
        | conv_shapes(f"{name}.block1.2", n_in, n_out)
        | linear_shapes(f"{name}.temb_proj.1", tdim, n_out)
        | norm_shapes(f"{name}.block2.0", n_out)
        | conv_shapes(f"{name}.block2.3", n_out, n_out)
        | (conv_shapes(f"{name}.shortcut", n_in, n_out, 1) if n_in != n_out else {})
        | (attn_shapes(f"{name}.attn", n_out) if attends else {})
    )


def down_shapes(widths: list[int], ch: int, attn: list[int], blocks: int) -> Shapes:
    shapes: Shapes = {}
    for level, width in enumerate(widths):
        first = level * (blocks + 1)  # every level above left its blocks and one DownSample
        above = widths[level - 1] if level else ch
        for j in range(blocks):
            n_in = width if j else above
            shapes |= block_shapes(f"downblocks.{first + j}", n_in, width, 4 * ch, attends=level in attn)
        if level < len(widths) - 1:
            shapes |= conv_shapes(f"downblocks.{first + blocks}.main", width, width)
    return shapes


def up_shapes(widths: list[int], ch: int, attn: list[int], blocks: int) -> Shapes:
    shapes: Shapes = {}
    deepest = len(widths) - 1
    for level, width in enumerate(widths):
        first = (deepest - level) * (blocks + 2)  # every level below left its blocks + 1 and one UpSample
        below = widths[level + 1] if level < deepest else width
        above = widths[level - 1] if level else ch
        for j in range(blocks + 1):
            skip = above if j == blocks else width  # the last one is the level's own input
            n_in = skip + (width if j else below)
            shapes |= block_shapes(f"upblocks.{first + j}", n_in, width, 4 * ch, attends=level in attn)
        if level:
            shapes |= conv_shapes(f"upblocks.{first + blocks + 1}.main", width, width)
    return shapes


def all_shapes(
    T: int, ch: int, ch_mult: list[int], attn: list[int], num_res_blocks: int, in_channels: int, out_channels: int
) -> Shapes:
    widths = [ch * mult for mult in ch_mult]
    return (
        {TABLE_KEY: (T, ch)}
        | linear_shapes("time_embedding.timembedding.1", ch, 4 * ch)
        | linear_shapes("time_embedding.timembedding.3", 4 * ch, 4 * ch)
        | conv_shapes("head", in_channels, ch)
        | down_shapes(widths, ch, attn, num_res_blocks)
        | block_shapes("middleblocks.0", widths[-1], widths[-1], 4 * ch, attends=True)
        | block_shapes("middleblocks.1", widths[-1], widths[-1], 4 * ch, attends=False)
        | up_shapes(widths, ch, attn, num_res_blocks)
        | norm_shapes("tail.0", widths[0])
        | conv_shapes("tail.2", widths[0], out_channels)
    )


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# resolution: ch, ch_mult, image channels, entries in the state dict, values that train
PRESET_TABLE = {
    28: (64, [1, 2, 2], 1, 219, 6_138_369),
    32: (128, [1, 2, 3, 4], 3, 283, 79_998_339),
    64: (128, [1, 2, 3, 4], 3, 283, 79_998_339),
}


@pytest.mark.parametrize("resolution", PRESET_TABLE)
def test_preset_has_exactly_these_keys_shapes_and_counts(resolution: int) -> None:
    ch, ch_mult, channels, n_keys, n_trained = PRESET_TABLE[resolution]
    with torch.device("meta"):
        model = UNet.preset(resolution)
    expected = all_shapes(1000, ch, ch_mult, [], 2, channels, channels)
    assert shapes_of(model) == expected
    assert len(model.state_dict()) == n_keys
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == n_trained
    assert sum(math.prod(shape) for shape in expected.values()) == n_trained + 1000 * ch
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.15}


def test_every_preset_is_in_the_table() -> None:
    assert PRESETS.keys() == PRESET_TABLE.keys()


def test_original_cifar10_network_has_the_published_count() -> None:
    # "Our CIFAR10 model has 35.7 million parameters", Ho et al. 2020, appendix B
    model = on_meta(T=1000, ch=128, ch_mult=[1, 2, 2, 2], attn=[1], num_res_blocks=2, dropout=0.1)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 35_746_307


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    ch_mult = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return {
        "T": draw(st.integers(1, 20)),
        "ch": 32 * draw(st.integers(1, 3)),
        "ch_mult": ch_mult,
        "attn": sorted(draw(st.sets(st.integers(0, len(ch_mult) - 1)))),
        "num_res_blocks": draw(st.integers(1, 3)),
        "in_channels": draw(st.integers(1, 4)),
        "out_channels": draw(st.integers(1, 4)),
    }


@given(arguments=arguments())
@settings(max_examples=25, deadline=None)
def test_any_network_has_the_counted_shapes_and_tells_its_arguments(arguments: dict[str, Any]) -> None:
    model = on_meta(dropout=0.0, **arguments)
    assert shapes_of(model) == all_shapes(**arguments)
    assert infer_arguments("a.pt", model.state_dict()) == arguments


@pytest.mark.parametrize(
    ("resolution", "asked", "channels"),
    [
        (28, {}, (1, 1)),
        (64, {}, (3, 3)),
        (28, {"in_channels": 3}, (3, 3)),
        (32, {"out_channels": 6}, (3, 6)),
        (32, {"in_channels": 1, "out_channels": 2}, (1, 2)),
    ],
)
def test_preset_channels(resolution: int, asked: dict[str, int], channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        shapes = shapes_of(UNet.preset(resolution, **asked))
    assert (shapes["head.weight"][1], shapes["tail.2.weight"][0]) == channels


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
