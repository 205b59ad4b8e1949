"""The layers of the UNet: each against the formula it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tilecov.pipeline.unet_blocks import (
    AttnBlock,
    DownSample,
    FlattenLinear,
    ResBlock,
    TimeEmbedding,
    UpSample,
    sinusoids,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def loud(model: nn.Module) -> nn.Module:
    """Replace the quiet initial weights, beside which every error would look small."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return model


def test_sinusoids_follow_the_formula_interleaved() -> None:
    T, d = 1000, 64
    table = sinusoids(T, d)
    assert table.shape == (T, d)
    assert table.dtype == torch.float32
    for t in (0, 1, 37, 999):
        for i in range(d // 2):
            angle = t / 10_000 ** (2 * i / d)
            # float32 angles up to 999 carry an error of up to 999 * 2^-23 or so
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=3e-4)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=3e-4)


def test_time_embedding_is_two_linear_layers_around_swish() -> None:
    embedding = TimeEmbedding(20, 8, 16)
    first, second = embedding.timembedding[1], embedding.timembedding[3]
    t = torch.tensor([0, 7, 19])
    hidden = sinusoids(20, 8)[t] @ first.weight.T + first.bias
    torch.testing.assert_close(embedding(t), hidden * torch.sigmoid(hidden) @ second.weight.T + second.bias)


def test_attention_is_the_softmax_formula() -> None:
    block = loud(AttnBlock(64)).double()
    x = torch.randn(2, 64, 3, 5, dtype=torch.float64)
    h = block.group_norm(x)
    q, k, v = (p(h).reshape(2, 64, 15) for p in (block.proj_q, block.proj_k, block.proj_v))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(64), dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(2, 64, 3, 5)
    torch.testing.assert_close(block(x), x + block.proj(mixed))


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (64, 128)])
def test_resblock_adds_the_time_between_its_convolutions(n_in: int, n_out: int) -> None:
    block = loud(ResBlock(n_in, n_out, 16, 0.0)).eval()
    x, temb = torch.randn(2, n_in, 4, 4), torch.randn(2, 16)
    time = block.temb_proj(temb)[:, :, None, None]
    torch.testing.assert_close(block(x, temb), block.block2(block.block1(x) + time) + block.shortcut(x))
    assert not torch.allclose(block(x, temb), block(x, temb + 1), atol=1e-3)


def test_resblock_drops_after_the_swish() -> None:
    block = ResBlock(64, 64, 16, 0.25)
    assert [type(layer) for layer in block.block2] == [nn.GroupNorm, nn.SiLU, nn.Dropout, nn.Conv2d]
    assert block.block2[2].p == 0.25


def test_resblock_of_32_channels_cannot_see_the_time() -> None:
    block = loud(ResBlock(32, 32, 16, 0.0)).eval()  # each group of its norm is one channel
    x, temb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    torch.testing.assert_close(block(x, temb), block(x, temb + 1), atol=1e-4, rtol=0)


def test_upsample_repeats_each_pixel_before_its_convolution() -> None:
    layer = UpSample(4)
    nn.init.dirac_(layer.main.weight)  # the convolution that changes nothing
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(layer(x, torch.empty(0)), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_downsample_takes_every_other_pixel_of_its_convolution() -> None:
    layer = DownSample(4)
    nn.init.dirac_(layer.main.weight)
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(layer(x, torch.empty(0)), x[:, :, ::2, ::2])


def test_flatten_linear_mixes_map_and_time() -> None:
    layer = FlattenLinear(2, 3, 4, 5)
    x, temb = torch.randn(6, 2, 3, 4), torch.randn(6, 5)
    weight, bias = layer.linear.weight, layer.linear.bias
    assert weight.shape == (24, 29)
    expected = x.reshape(6, 24) @ weight[:, :24].T + temb @ weight[:, 24:].T + bias
    torch.testing.assert_close(layer(x, temb), expected.reshape(6, 2, 3, 4))


def test_flatten_linear_refuses_another_map() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) but got \(2, 4, 3\)"):
        FlattenLinear(2, 3, 4, 5)(torch.zeros(1, 2, 4, 3), torch.zeros(1, 5))
