"""Attribution: which pixels of a video, and when, speak for a class.

>>> heat = attribution(model, video, "jumping jack")            # doctest: +SKIP
>>> heat.shape                                                  # doctest: +SKIP
(16, 112, 112)
>>> shown = overlay(video, heat)                                # doctest: +SKIP
>>> render.write_video("heat.mp4", shown, model.spec.fps)       # doctest: +SKIP

Integrated gradients are those of M. Sundararajan, A. Taly and Q. Yan, "Axiomatic
Attribution for Deep Networks", ICML 2017 (arXiv 1703.01365).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from leaps_jax import video as video_lib
from leaps_jax.errors import UserError, check_known
from leaps_jax.model import Model

METHODS = ("integrated_gradients", "gradient_x_input")


def attribution(
    model: Model,
    video: ArrayLike,
    label: int | str | Sequence[int | str],
    method: str = "integrated_gradients",
    *,
    steps: int = 64,
    batch: int = 8,
    baseline: ArrayLike | None = None,
    absolute: bool = False,
) -> np.ndarray:
    """How much each pixel adds to the logit of a class.

    `integrated_gradients` is (x − x₀) times the mean of the gradient on the straight
    way from the baseline x₀ to the video x: its sum is the difference of the logits of
    the two, up to the number of steps. `gradient_x_input` is (x − x₀) times the
    gradient at x: one step, and no such sum.

    Args:
      model: the network.
      video: (t, h, w, 3) pixels in [0, 1] in the model's frames and size, or (n, t, h,
        w, 3) of several.
      label: class, index or name; one for all videos, or n of them.
      method: one of these two.
      steps: points on the way, of the middle rule.
      batch: points on the device at a time; fewer take less memory.
      baseline: pixels that say nothing, of a shape that broadcasts to (t, h, w, 3);
        black by default. Not those that become 0 inside the model, its `spec.mean`:
        where a norm follows the first convolution, the logit jumps there, between two
        steps, and the sum lacks that.
      absolute: add up the absolute values of the three colours; otherwise values are
        signed, and positive where a pixel speaks for the class.

    Returns:
      (t, h, w) or (n, t, h, w) float32, in logits.

    Raises:
      UserError: a shape, a label or the method is wrong.
    """
    check_known("method", method, METHODS)
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    spec, videos = model.spec, np.asarray(video, np.float32)
    shape = (spec.frames, spec.size, spec.size, 3)
    if videos.shape[-4:] != shape or videos.ndim not in (4, 5):
        raise UserError(
            f"video of shape {videos.shape}: must be {shape}, or (n, ...) of several"
        )
    several = videos.reshape(-1, *shape)
    labels = [label] if isinstance(label, int | str) else list(label)
    if len(labels) not in (1, len(several)):
        what = f"{len(labels)} labels for {len(several)} videos"
        raise UserError(f"label: {what}; give one, or one for each")
    numbers = [spec.label_index(each) for each in labels]
    numbers *= len(several) // len(numbers)
    origin = np.asarray(0.0 if baseline is None else baseline, np.float32)
    try:
        origin = np.broadcast_to(origin, shape)
    except ValueError:
        raise UserError(
            f"baseline of shape {origin.shape}: must broadcast to {shape}"
        ) from None
    points = _points(method, steps, min(batch, steps))
    slope = functools.partial(_mean_slope, model.module, spec, model.variables)
    found = []
    for pixels, number in zip(several, numbers, strict=True):
        parts = (pixels - origin) * np.asarray(slope(pixels, origin, number, points))
        found.append((np.abs(parts) if absolute else parts).sum(-1))
    return np.stack(found).reshape(videos.shape[:-1])


def _points(method: str, steps: int, batch: int) -> np.ndarray:
    """Points from the baseline (0) to the video (1), and weights, (2, chunks, batch).

    >>> _points("integrated_gradients", 3, 2)[1].astype(bool).tolist()
    [[True, True], [True, False]]
    """
    if method == "gradient_x_input":
        return np.ones((2, 1, 1), np.float32)
    shares = (np.arange(steps) + 0.5) / steps
    both = np.stack([shares, np.full(steps, 1 / steps)])
    padded = np.pad(both, ((0, 0), (0, -steps % batch)))  # by points of weight 0
    return padded.reshape(2, -1, batch).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mean_slope(module, spec, variables, pixels, origin, label, points):
    """The weighted mean of a logit's gradient at points on the way, (t, h, w, 3)."""

    def logit(videos: jax.Array) -> jax.Array:
        logits = module.apply(variables, video_lib.normalize(videos, spec))
        return logits.astype(jnp.float32)[:, label].sum()

    def add(total: jax.Array, chunk: tuple[jax.Array, jax.Array]):
        shares, weights = chunk
        videos = origin + shares[:, None, None, None, None] * (pixels - origin)
        slopes = jax.grad(logit)(videos)
        return total + jnp.tensordot(weights, slopes, 1), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(pixels), tuple(points))
    return total


def overlay(video: ArrayLike, heat: ArrayLike, blur: float = 1.5) -> np.ndarray:
    """Heat maps over grey videos: red speaks for the class, blue against it.

    The strongest hundredth of each video has the full colour.

    Args:
      video: (t, h, w, 3) pixels in [0, 1], or (n, t, h, w, 3).
      heat: of `attribution`, (t, h, w) or (n, t, h, w).
      blur: standard deviation in pixels by which heat is smoothed over height and
        width; 0 for not at all.

    Returns:
      Pixels in [0, 1], of the shape of `video`; `lj.render.side_by_side(videos, shown)`
      lays them beside the videos.

    Raises:
      UserError: the shapes do not fit.

    >>> overlay(np.zeros((2, 8, 8, 3)), np.ones((2, 8, 8))).shape
    (2, 8, 8, 3)
    """
    pixels, amounts = np.asarray(video, np.float32), np.asarray(heat, np.float32)
    if pixels.ndim not in (4, 5) or pixels.shape != (*amounts.shape, 3):
        what = f"heat of shape {amounts.shape} for a video of {pixels.shape}"
        raise UserError(f"{what}: must be one number a pixel")
    amounts = _blurred(amounts, blur) if blur else amounts
    strongest = np.quantile(np.abs(amounts), 0.99, axis=(-3, -2, -1), keepdims=True)
    amounts = np.clip(amounts / np.maximum(strongest, 1e-12), -1, 1)[..., None]
    grey = 0.15 + 0.55 * (pixels @ _BRIGHTNESS)[..., None]
    colour = np.where(amounts > 0, _FOR, _AGAINST)
    return (grey + np.abs(amounts) * (colour - grey)).astype(np.float32)


_BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
_FOR = np.array([1.0, 0.25, 0.1], np.float32)
_AGAINST = np.array([0.1, 0.45, 1.0], np.float32)


def _blurred(heat: np.ndarray, width: float) -> np.ndarray:
    """Smoothed by a Gaussian over the last two axes; sums stay, but at the border."""
    for axis in (-2, -1):
        places = np.arange(heat.shape[axis])
        kernel = np.exp(-np.square((places[:, None] - places) / width) / 2)
        kernel /= kernel.sum(0).max()
        moved = np.tensordot(heat, kernel.astype(np.float32), (axis, 0))
        heat = np.moveaxis(moved, -1, axis)
    return heat
