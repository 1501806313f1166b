"""Arithmetic on video arrays `(..., t, h, w, c)`: sampling, resizing, normalising.

Pixels are float in [0, 1] outside a model and normalised inside; this file holds the
only conversions between the two.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.kernels.resize import resize
from leaps_jax.model import ModelSpec

Array = TypeVar("Array", jax.Array, np.ndarray)


def normalize(pixels: jax.Array, spec: ModelSpec) -> jax.Array:
    """Pixels in [0, 1] to what the network takes: `(pixels - mean) / std`."""
    return (pixels - jnp.array(spec.mean)) / jnp.array(spec.std)


def denormalize(video: jax.Array, spec: ModelSpec) -> jax.Array:
    """The inverse of `normalize`."""
    return video * jnp.array(spec.std) + jnp.array(spec.mean)


def clip_to_pixels(video: jax.Array, spec: ModelSpec) -> jax.Array:
    """Clips a normalised video to what a screen can show, [0, 1] in pixels."""
    mean, std = jnp.array(spec.mean), jnp.array(spec.std)
    return jnp.clip(video, -mean / std, (1 - mean) / std)


def sample_frames(
    available: int, frames: int, stride: int, *, short: str = "refuse"
) -> np.ndarray:
    """Indices of `frames` frames, `stride` apart, around the middle of a clip.

    Args:
      available: frames of the clip.
      frames: how many to take.
      stride: source frames from one to the next.
      short: for a clip that is too short, "refuse" it or "loop" it from the start.

    Raises:
      UserError: the clip is too short and `short` is "refuse".

    >>> sample_frames(10, frames=4, stride=2)
    array([1, 3, 5, 7])
    >>> sample_frames(3, frames=4, stride=1, short="loop")
    array([0, 1, 2, 0])
    """
    if short not in ("refuse", "loop"):
        raise UserError(f"short={short!r}: must be refuse or loop")
    window = (frames - 1) * stride + 1
    if available < window and short == "refuse":
        raise UserError(
            f"has {available} frames and {frames} frames at stride {stride} need"
            f" {window}; loop it (--short loop), or lower the stride or the frames"
        )
    start = max(0, (available - window) // 2)
    return (start + stride * np.arange(frames)) % available


def resize_and_crop(video: jax.Array, size: int) -> jax.Array:
    """Resizes the short side to `size` (bilinear, antialiased) and crops the centre.

    Args:
      video: (t, h, w, c) or with leading axes, float.
      size: pixels.

    >>> resize_and_crop(jnp.zeros((2, 60, 80, 3)), 30).shape
    (2, 30, 30, 3)
    """
    *lead, h, w, c = video.shape
    height, width = (
        (size, round(w * size / h)) if h <= w else (round(h * size / w), size)
    )
    if (h, w) != (height, width):
        video = jax.image.resize(video, (*lead, height, width, c), "linear")
    top, left = (height - size) // 2, (width - size) // 2
    return video[..., top : top + size, left : left + size, :]


def fit(
    video: jax.Array,
    frames: int,
    size: int,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    """Shows a synthesised video to a model with another clip length or size.

    Frames are taken evenly (repeated when the model wants more than there are) and
    resized bilinearly.

    Args:
      video: (b, t, h, w, c).
      frames: of the other model.
      size: of the other model.
      precision: of the products that resize it; None is what the device runs fast.
    """
    _, t, h, w, _ = video.shape
    if frames != t:
        chosen, step = np.arange(frames) * t // frames, max(t // frames, 1)
        if np.array_equal(chosen, np.arange(frames) * step):
            # the gradient of a slice is no scatter
            video = video[:, : frames * step : step]
        else:
            video = video[:, chosen]
    if (h, w) != (size, size):
        video = resize(video, (size, size), precision)
    return video


def at_octave(video: jax.Array, octave: int, scale: float) -> jax.Array:
    """Shrinks frames by `scale ** octave` and tiles them to their former size.

    The model then sees the picture at a coarser scale, in the size that it takes.
    """
    if octave == 0:
        return video
    b, t, h, w, c = video.shape
    small = (round(h / scale**octave), round(w / scale**octave))
    video = jax.image.resize(video, (b, t, *small, c), "linear")
    pad = [(0, 0), (0, 0), (0, h - small[0]), (0, w - small[1]), (0, 0)]
    return jnp.pad(video, pad, mode="wrap")
