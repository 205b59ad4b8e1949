"""The DDPM UNet (Ho, Jain, Abbeel 2020, arXiv:2006.11239) that the Wiener estimate is compared with.

Constructor, forward flags, module names and initialisation are those of the reference, so that the state dicts of
``w86763777/pytorch-ddpm``-style checkpoints load key for key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .unet_blocks import GROUPS, QUIET_GAIN, DownSample, FlattenLinear, ResBlock, TimeEmbedding, UpSample, conv
from .unet_checkpoint import infer_arguments, match_state, read_state

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

__all__ = ["PRESETS", "FlattenLinear", "Preset", "UNet", "load_unet"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What differs between the presets: T = 1000, two blocks a level, dropout 0.15 and no attention are common."""

    ch: int
    ch_mult: tuple[int, ...]
    channels: int  # of the image, unless told otherwise


PRESETS = {
    28: Preset(ch=64, ch_mult=(1, 2, 2), channels=1),  # 28 halves only twice
    32: Preset(ch=128, ch_mult=(1, 2, 3, 4), channels=3),
    64: Preset(ch=128, ch_mult=(1, 2, 3, 4), channels=3),
}


class UNet(nn.Module):
    """Predict the noise in x_t at step t.

    Parameters
    ----------
    T
        Number of steps; t runs from 0 to T - 1.
    ch
        Channels of the first level, a multiple of 32; also the length of the sinusoidal code. 64 and more: with 32 the
        first level cannot see the time (see `ResBlock`).
    ch_mult
        Each level's channels as a multiple of ``ch``. Every level after the first works at half the size.
    attn
        The levels, counted from 0, whose blocks attend. The first middle block always does.
    num_res_blocks
        Residual blocks of each level on the way down; the way up has one more.
    dropout
        Probability, at least 0 and less than 1.
    in_channels, out_channels
        Channels of the image and of the prediction.

    Raises
    ------
    ValueError
        An argument cannot give a network; the message says which values can.
    """

    def __init__(
        self,
        T: int,
        ch: int,
        ch_mult: Sequence[int],
        attn: Sequence[int],
        num_res_blocks: int,
        dropout: float,
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        _check_counts(T=T, ch=ch, num_res_blocks=num_res_blocks, in_channels=in_channels, out_channels=out_channels)
        _check_levels(ch, ch_mult, attn, dropout)
        super().__init__()
        self.in_channels = in_channels
        self.downscale = 2 ** (len(ch_mult) - 1)
        tdim = 4 * ch
        widths = [ch * mult for mult in ch_mult]
        block = partial(ResBlock, tdim=tdim, dropout=dropout)
        self.time_embedding = TimeEmbedding(T, ch, tdim)
        self.head = conv(in_channels, ch)
        self.downblocks, skips = _way_down(block, ch, widths, attn, num_res_blocks)
        self.middleblocks = nn.ModuleList([block(widths[-1], widths[-1], attn=attends) for attends in (True, False)])
        self.upblocks = _way_up(block, skips, widths, attn, num_res_blocks)
        self.tail = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), conv(widths[0], out_channels, gain=QUIET_GAIN)
        )

    @classmethod
    def preset(cls, resolution: int, *, in_channels: int | None = None, out_channels: int | None = None) -> Self:
        """Build the network for images of 28, 32 or 64 pixels.

        Parameters
        ----------
        resolution
            28 (grayscale unless told otherwise), 32 or 64 (RGB; one network, which takes either size).
        in_channels, out_channels
            Channels of the image, and of the prediction (as many as the image's unless given).

        Raises
        ------
        ValueError
            There is no preset for that resolution.
        """
        if resolution not in PRESETS:
            raise ValueError(f"No preset for {resolution} pixels: choose from {sorted(PRESETS)}, or construct a UNet.")
        preset = PRESETS[resolution]
        n_in = preset.channels if in_channels is None else in_channels
        n_out = n_in if out_channels is None else out_channels
        return cls(1000, preset.ch, preset.ch_mult, [], 2, 0.15, in_channels=n_in, out_channels=n_out)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        return_middle_feature: bool = False,  # noqa: FBT001, FBT002 - the reference's signature
        return_all_features: bool = False,  # noqa: FBT001, FBT002 - the reference's signature
    ) -> Tensor | tuple[Tensor, ...]:
        """Predict the noise.

        Parameters
        ----------
        x
            (B, in_channels, H, W), float32; H and W divisible by 2 to the power of levels - 1.
        t
            (B,), int64 or int32, from 0 to T - 1.
        return_middle_feature
            Also return the innermost features and the embedded time.
        return_all_features
            Also return these and the features before the tail; wins over ``return_middle_feature``.

        Returns
        -------
        Tensor or tuple of Tensor
            ``out`` (B, out_channels, H, W); or ``(out, middle, temb)`` or ``(out, middle, pretail, temb)`` with
            ``middle`` (B, ch * ch_mult[-1], H / 2^(levels-1), W / 2^(levels-1)), ``pretail`` (B, ch * ch_mult[0], H, W)
            and ``temb`` (B, 4 ch).

        Raises
        ------
        ValueError
            ``x`` or ``t`` has a shape or type that the network cannot take.
        IndexError
            A step lies outside 0 to T - 1 (on the CPU; CUDA fails an assertion on the device).
        """
        self._check_input(x, t)
        temb = self.time_embedding(t)
        skips = [self.head(x)]
        for layer in self.downblocks:
            skips.append(layer(skips[-1], temb))
        h = skips[-1]
        for layer in self.middleblocks:
            h = layer(h, temb)
        middle = h
        for layer in self.upblocks:
            h = layer(torch.cat([h, skips.pop()], dim=1) if isinstance(layer, ResBlock) else h, temb)
        out: Tensor = self.tail(h)
        if return_all_features:
            return out, middle, h, temb
        return (out, middle, temb) if return_middle_feature else out

    def _check_input(self, x: Tensor, t: Tensor) -> None:
        """Refuse what would fail deep inside, or worse, broadcast."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (B, {self.in_channels}, H, W) but has the shape {tuple(x.shape)}.")
        if x.shape[2] % self.downscale or x.shape[3] % self.downscale:
            raise ValueError(
                f"Height and width must be multiples of {self.downscale}, to be halved from level to level, "
                f"but x is {x.shape[2]} x {x.shape[3]}: pad or resize it, or build a UNet with fewer levels (ch_mult)."
            )
        if t.ndim != 1 or t.shape[0] != x.shape[0]:
            raise ValueError(
                f"t must hold one step for each of the {x.shape[0]} images but has the shape {tuple(t.shape)}: "
                "a single step is spread with torch.full((len(x),), step)."
            )
        if t.dtype not in {torch.int64, torch.int32}:
            raise ValueError(f"t must be int64 or int32, because steps index a table, but is {t.dtype}: use t.long().")


def load_unet(
    path: str | os.PathLike[str], model: UNet | None = None, *, key: str | None = None, dropout: float = 0.15
) -> UNet:
    """Load a checkpoint, on the CPU and in evaluation mode (dropout off).

    Parameters
    ----------
    path
        A file with a bare state dict, or with one under ``model_state_dict``. Read with ``weights_only=True``: it
        cannot run code.
    model
        The network to fill, on whatever device it is. None: build the one that the tensors' shapes tell.
    key
        The key the state dict lies under, if another (pytorch-ddpm itself writes ``net_model`` and ``ema_model``).
    dropout
        For a network built here; a checkpoint does not tell.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file holds no state dict, or keys or shapes that differ from the network's; the message lists them.
    """
    state = read_state(path, key)
    if model is None:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            model = UNet(dropout=dropout, **infer_arguments(path, state))
        match_state(path, state, model)
        model.load_state_dict(state, assign=True)
        model.float()  # a checkpoint in half precision gives the same network as one in single
    else:
        match_state(path, state, model)
        model.load_state_dict(state)
    return model.eval()


def _check_counts(**counts: object) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1 but is {value!r}.")


def _check_levels(ch: int, ch_mult: Sequence[int], attn: Sequence[int], dropout: float) -> None:
    if ch % 2:
        raise ValueError(f"ch must be even, half sines and half cosines in the time embedding, but is {ch}.")
    if ch % GROUPS:
        raise ValueError(f"ch must be a multiple of {GROUPS}, the groups of every GroupNorm, but is {ch}.")
    if not ch_mult:
        raise ValueError("ch_mult is empty: it needs one multiple of ch for each level, such as [1, 2, 2].")
    _check_counts(**{f"ch_mult[{i}]": mult for i, mult in enumerate(ch_mult)})
    outside = [level for level in attn if level not in range(len(ch_mult))]
    if outside:
        raise ValueError(f"attn names the levels {outside}, but ch_mult has the levels 0 to {len(ch_mult) - 1}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1 but is {dropout}.")


def _way_down(
    block: partial[ResBlock], ch: int, widths: Sequence[int], attn: Sequence[int], num_res_blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """Return the layers, and the channels of every map they hand to the way up (the head's first)."""
    layers = nn.ModuleList()
    skips = [ch]
    for level, width in enumerate(widths):
        if level > 0:
            layers.append(DownSample(skips[-1]))
            skips.append(skips[-1])
        for _ in range(num_res_blocks):
            layers.append(block(skips[-1], width, attn=level in attn))
            skips.append(width)
    return layers, skips


def _way_up(
    block: partial[ResBlock], skips: Sequence[int], widths: Sequence[int], attn: Sequence[int], num_res_blocks: int
) -> nn.ModuleList:
    """Return the layers that use the maps of the way down, the last one first."""
    layers = nn.ModuleList()
    now, waiting = widths[-1], list(skips)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(num_res_blocks + 1):
            layers.append(block(now + waiting.pop(), width, attn=level in attn))
            now = width
        if level > 0:
            layers.append(UpSample(width))
    return layers
