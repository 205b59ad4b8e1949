"""Dead-leaves images: occluding discs whose power spectrum falls as 1/f^2, as that of photographs does."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_R_MIN = 1.0  # pixels: the smallest leaf still covers a pixel, so there is detail down to the finest scale
_R_MAX = 2.0  # image sides: one leaf can fill the image, so images differ in brightness and colour
_DEPTH = 5.0  # leaves over a point, on average: the ground shows through at exp(-5) = 0.7 % of the pixels
_SCALE = 4  # drawn so many times larger, then averaged: smooth edges. 64 bytes per pixel of the image while drawing
_FLOATS = 6  # random numbers for a leaf: radius, place (2), colour (3)

# The colours of photographs vary most in brightness, less from blue to yellow, least from green to magenta (Ruderman,
# Cronin & Chiao, JOSA A 15, 1998); these three axes in RGB carry 92, 7 and 1 % of the variance here. Each is as long as
# the numbers drawn along it, from 0 to 1, are to reach.
_AXES = np.array([[255.0, 255.0, 255.0], [90.0, 0.0, -90.0], [15.0, -30.0, 15.0]])


def dead_leaves(rng: np.random.Generator, resolution: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Draw one dead-leaves image: discs that fall at random, each hiding what lies under it.

    Centres are uniform in the plane and the density of radii is proportional to ``r**-3``, the one that looks the same
    at every scale; its power spectrum falls as ``1/f**2`` up to a logarithm. Only discs whose bounding square meets the
    image are drawn, with the radii and places that those have.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the randomness comes from; only ``random`` is called, once.
    resolution : int
        Side of the image in pixels, at least 1.
    channels : int
        3 for RGB, 1 for gray.

    Returns
    -------
    ndarray of uint8, shape (resolution, resolution, channels)
        Every pixel is covered: the ground is one more leaf, too large for its edge to show.

    Raises
    ------
    ValueError
        Where the resolution is below 1 or the channels are neither 1 nor 3.

    References
    ----------
    G. Matheron, Random Sets and Integral Geometry, Wiley 1975.
    A. B. Lee, D. Mumford, J. Huang, Occlusion Models for Natural Images: A Statistical Study of a Scale-Invariant Dead
    Leaves Model, International Journal of Computer Vision 41, 2001.
    """
    if resolution < 1 or channels not in {1, 3}:
        raise ValueError(
            f"an image has a side of at least 1 and 1 or 3 channels, not a side of {resolution} and {channels} channels"
        )
    radii_grid, law = _radius_law(resolution)
    leaves = rng.random((_count(law, resolution), _FLOATS))
    radii = np.interp(law[0] + leaves[:, :1] * (law[-1] - law[0]), law, radii_grid)
    centres = leaves[:, 1:3] * (resolution + 2 * radii) - radii
    boxes = np.rint(np.hstack([centres - radii, centres + radii]) * _SCALE).astype(int)
    boxes[:, 2:] -= 1  # Pillow counts a box's last pixel as inside
    return _draw(boxes, _colours(leaves[:, 3:], channels), resolution)


def _radius_law(resolution: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return radii and the integral up to each of ``r**-3 (R + 2 r)**2``: the law of the discs that meet the image.

    A disc meets it where its centre lies in a square of side ``R + 2 r``, so large discs meet it more often.
    """
    radii = np.geomspace(_R_MIN, _R_MAX * resolution, 257)  # fine enough to interpolate linearly
    side = float(resolution)
    return radii, 4 * np.log(radii) - 4 * side / radii - side**2 / (2 * radii**2)


def _count(law: npt.NDArray[np.float64], resolution: int) -> int:
    """Return how many discs cover a point `_DEPTH` times on average, from the area ``pi r**2`` of each."""
    area = np.pi * np.log(_R_MAX * resolution / _R_MIN)
    return int(np.ceil(_DEPTH * (law[-1] - law[0]) / area))


def _colours(uniform: npt.NDArray[np.float64], channels: int) -> npt.NDArray[np.uint8]:
    """Turn uniform numbers (n, 3) into colours (n, channels): any brightness, moderate hues."""
    if channels == 1:
        return (uniform[:, :1] * 256).astype(np.uint8)
    rgb = uniform[:, :1] * _AXES[0] + (uniform[:, 1:] - 0.5) @ _AXES[1:]
    rounded: npt.NDArray[np.uint8] = rgb.clip(0, 255).round().astype(np.uint8)
    return rounded


def _draw(boxes: npt.NDArray[np.int_], colours: npt.NDArray[np.uint8], resolution: int) -> npt.NDArray[np.uint8]:
    side = resolution * _SCALE
    channels = colours.shape[1]
    fills = [tuple(colour) for colour in colours.tolist()]
    canvas = Image.new("RGB" if channels == 3 else "L", (side, side), fills[0])
    ellipse = ImageDraw.Draw(canvas).ellipse
    for box, fill in zip(boxes.tolist(), fills, strict=True):
        ellipse(box, fill)
    pixels = np.array(canvas.reduce(_SCALE), np.uint8)
    return pixels.reshape(resolution, resolution, channels)
