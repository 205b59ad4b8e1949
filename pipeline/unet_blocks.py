"""The layers of the DDPM UNet (Ho, Jain, Abbeel 2020, arXiv:2006.11239), named so that existing checkpoints load.

Names and positions inside each ``Sequential`` are the keys of the state dicts of ``w86763777/pytorch-ddpm`` and of
everything built on it: moving a layer breaks every checkpoint. Feature maps are (B, C, H, W); ``temb`` is (B, tdim).
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32  # of every GroupNorm, so every channel count is a multiple of it
QUIET_GAIN = 1e-5  # for the last layer of a residual branch: the branch starts silent, the block as the identity

_Affine = TypeVar("_Affine", nn.Conv2d, nn.Linear)


def xavier(layer: _Affine, gain: float = 1.0) -> _Affine:
    """Initialise a layer with Xavier-uniform weights and a zero bias, and return it.

    Parameters
    ----------
    layer
        A convolution or linear layer with a bias.
    gain
        Factor on the weights' bound ``sqrt(6 / (fan_in + fan_out))``.
    """
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(in_ch: int, out_ch: int, kernel: int = 3, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Build a Xavier-initialised convolution that keeps H and W (divides them, rounded up, by its stride)."""
    return xavier(nn.Conv2d(in_ch, out_ch, kernel, stride=stride, padding=kernel // 2), gain)


def sinusoids(T: int, d_model: int) -> Tensor:
    """Tabulate the sinusoidal position code of the steps 0 to T - 1.

    ``table[t, 2 i] = sin(t w_i)`` and ``table[t, 2 i + 1] = cos(t w_i)`` with ``w_i = 10000 ** (-2 i / d_model)``: sine
    and cosine alternate (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), where DDPM's own code concatenates them.

    Returns
    -------
    Tensor
        (T, d_model), float32.
    """
    frequency = torch.exp(torch.arange(0, d_model, 2) / d_model * -math.log(10_000))
    angle = torch.outer(torch.arange(T, dtype=frequency.dtype), frequency)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class TimeEmbedding(nn.Module):
    """Map the step t (B,) to ``temb`` (B, dim): a frozen table of sinusoids, then linear, swish, linear.

    The table is a parameter without gradient rather than a buffer, so that it stands in the state dict as key
    ``timembedding.0.weight``. A step outside 0 to T - 1 is an IndexError on the CPU and a device assertion on CUDA.
    """

    def __init__(self, T: int, d_model: int, dim: int) -> None:
        super().__init__()
        table = nn.Embedding(T, d_model)
        table.weight = nn.Parameter(sinusoids(T, d_model), requires_grad=False)
        self.timembedding = nn.Sequential(
            table,
            xavier(nn.Linear(d_model, dim)),
            nn.SiLU(),
            xavier(nn.Linear(dim, dim)),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed the steps t (B,), int64 or int32."""
        temb: Tensor = self.timembedding(t)
        return temb


class DownSample(nn.Module):
    """Halve height and width by a convolution of stride 2."""

    def __init__(self, in_ch: int) -> None:
        super().__init__()
        self.main = conv(in_ch, in_ch, stride=2)

    def forward(self, x: Tensor, _temb: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2); the time plays no part."""
        half: Tensor = self.main(x)
        return half


class UpSample(nn.Module):
    """Double height and width by repeating pixels, then smooth by a convolution."""

    def __init__(self, in_ch: int) -> None:
        super().__init__()
        self.main = conv(in_ch, in_ch)

    def forward(self, x: Tensor, _temb: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W); the time plays no part."""
        twice: Tensor = self.main(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return twice


class AttnBlock(nn.Module):
    """Let every pixel attend to every other: one head, residual, starting as the identity.

    ``x + proj(softmax(q k^T / sqrt(C)) v)`` with q, k, v 1x1 convolutions of the normalised map.
    """

    def __init__(self, in_ch: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, in_ch)
        self.proj_q = conv(in_ch, in_ch, 1)
        self.proj_k = conv(in_ch, in_ch, 1)
        self.proj_v = conv(in_ch, in_ch, 1)
        # pytorch-ddpm asks for this gain too, but its ResBlock then initialises every convolution again, at gain 1
        self.proj = conv(in_ch, in_ch, 1, gain=QUIET_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        h = self.group_norm(x)
        # (B, 1 head, H W, C): the fused kernels want the axis of heads, and scale by 1 / sqrt(C) on their own
        q, k, v = (p(h).flatten(2).transpose(1, 2).unsqueeze(1) for p in (self.proj_q, self.proj_k, self.proj_v))
        mixed = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        out: Tensor = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class ResBlock(nn.Module):
    """Two convolutions with the time added in between, beside a shortcut; attention after them where asked for.

    Parameters
    ----------
    in_ch, out_ch
        Channels, multiples of 32. With 32 channels each GroupNorm group is one channel, and the norm takes away again
        what ``temb_proj`` added: such a block cannot see the time.
    tdim
        Length of ``temb``.
    dropout
        Probability, before the second convolution.
    attn
        Whether an `AttnBlock` follows.
    """

    def __init__(self, in_ch: int, out_ch: int, tdim: int, dropout: float, *, attn: bool = False) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.GroupNorm(GROUPS, in_ch), nn.SiLU(), conv(in_ch, out_ch))
        self.temb_proj = nn.Sequential(nn.SiLU(), xavier(nn.Linear(tdim, out_ch)))
        self.block2 = nn.Sequential(
            nn.GroupNorm(GROUPS, out_ch), nn.SiLU(), nn.Dropout(dropout), conv(out_ch, out_ch, gain=QUIET_GAIN)
        )
        self.shortcut = nn.Identity() if in_ch == out_ch else conv(in_ch, out_ch, 1)
        self.attn = AttnBlock(out_ch) if attn else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Map (B, in_ch, H, W) and (B, tdim) to (B, out_ch, H, W)."""
        h = self.block1(x) + self.temb_proj(temb)[:, :, None, None]
        out: Tensor = self.attn(self.block2(h) + self.shortcut(x))
        return out


class FlattenLinear(nn.Module):
    """Mix a whole feature map and the time by one linear layer; no preset uses it.

    Parameters
    ----------
    channels, height, width
        The map's shape. The weight has about ``(channels * height * width) ** 2`` entries: for small maps only.
    tdim
        Length of ``temb``.
    """

    def __init__(self, channels: int, height: int, width: int, tdim: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        size = math.prod(self.shape)
        self.linear = xavier(nn.Linear(size + tdim, size))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Map (B, channels, height, width) and (B, tdim) to (B, channels, height, width).

        Raises
        ------
        ValueError
            The map has another shape than the layer was made for.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"FlattenLinear was made for maps of shape {self.shape} but got {tuple(x.shape[1:])}.")
        out: Tensor = self.linear(torch.cat([x.flatten(1), temb], dim=1))
        return out.reshape(x.shape)
