"""Resizing of frames.

`jax.image.resize` is the definition: two matrix products. XLA for GPUs transposes the
video around each of them, so there every pixel, and every pixel of the gradient, is a
sum of a few neighbours. tests/kernels/test_resize.py holds one against the other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax.kernels import dispatch

Size2 = tuple[int, int]

_MOST = 3  # times as large or small: every neighbour of a pixel is code of its own


def resize(
    video: jax.Array,
    size: Size2,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    """Resizes height and width, bilinear and antialiased.

    Args:
      video: (b, t, h, w, c), float32.
      size: the new height and width.
      precision: of products, where it is these.
    """
    b, t, h, w, c = video.shape

    def by_products(video: jax.Array) -> jax.Array:
        shape = (b, t, *size, c)
        return jax.image.resize(video, shape, "linear", precision=precision)

    if any(n > _MOST * m or m > _MOST * n for n, m in zip((h, w), size, strict=True)):
        return by_products(video)
    gpu = functools.partial(by_neighbours, before=(h, w), after=size)
    return dispatch.by_platform(by_products, gpu=gpu, old_gpu=gpu)(video)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def by_neighbours(video: jax.Array, before: Size2, after: Size2) -> jax.Array:
    """Each new pixel as a weighted sum of old ones near it."""
    return _sums(video, *map(interpolation, before, after))


def _by_neighbours_backward(before, after, _, gradient):
    rows, columns = map(interpolation, before, after)
    return (_sums(gradient, rows.T, columns.T),)


by_neighbours.defvjp(
    lambda video, *how: (by_neighbours(video, *how), ()), _by_neighbours_backward
)


def interpolation(before: int, after: int) -> np.ndarray:
    """The weights of the old pixels of an axis in each new one, (after, before).

    A triangle around its own place, which is wider where there were more pixels.

    >>> interpolation(2, 4)
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]], dtype=float32)
    """
    width = max(before / after, 1.0)
    places = (np.arange(after) + 0.5) * before / after - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(before)) / width)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _neighbours(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first that counts in each row (m,), and weights from it on (m, count)."""
    counts = weights > 0
    n = weights.shape[1]
    first, last = counts.argmax(1), n - 1 - counts[:, ::-1].argmax(1)
    count = int((last - first).max()) + 1
    first = np.minimum(first, n - count)
    columns = first[:, None] + np.arange(count)
    return first.astype(np.int32), np.take_along_axis(weights, columns, 1)


def _sums(
    x: jax.Array, height_weights: np.ndarray, width_weights: np.ndarray
) -> jax.Array:
    """The product of height and width with weights that are mostly zero."""
    (rows, row_weights), (columns, column_weights) = map(
        _neighbours, (height_weights, width_weights)
    )

    def take(x: jax.Array, axis: int, places: np.ndarray) -> jax.Array:
        taken = x.at[(slice(None),) * axis + (places,)]
        return taken.get(mode="promise_in_bounds", indices_are_sorted=True)

    y: jax.Array | float = 0.0
    for i, down in enumerate(row_weights.T):
        line = take(x, 2, rows + i)
        parts = (
            across[:, None] * take(line, 3, columns + j)
            for j, across in enumerate(column_weights.T)
        )
        y += down[:, None, None] * sum(parts)
    return jnp.asarray(y).astype(x.dtype)
