"""The UNet's state dict: names, shapes and counts of the presets and of any network, from first principles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TABLE_KEY
from torch import nn

from tilecov.pipeline.unet import PRESETS, UNet
from tilecov.pipeline.unet_checkpoint import infer_arguments

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")

Shapes = dict[str, tuple[int, ...]]


def on_meta(**arguments: Any) -> UNet:
    with torch.device("meta"):
        return UNet(**arguments)


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
@settings(max_examples=25)
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
