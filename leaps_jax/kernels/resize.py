"""Resizing of frames.

`jax.image.resize` is the definition: two matrix products. XLA for GPUs transposes the
video around each of them, so there every pixel, and every pixel of the gradient, is a
sum of a few neighbours, in one kernel. tests/kernels/test_resize.py holds the kernel,
interpreted, against the definition.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton

Size2 = tuple[int, int]

_MOST = 3  # times as large or small: all neighbours of a pixel are code of the kernel


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
    kernel = functools.partial(by_neighbours, before=(h, w), after=size)
    return dispatch.by_platform(by_products, gpu=kernel)(video)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def by_neighbours(video: jax.Array, before: Size2, after: Size2) -> jax.Array:
    """One kernel, for GPUs."""
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


_WARPS, _ELEMENTS = 4, 1024  # of a program


def _sums(
    x: jax.Array, height_weights: np.ndarray, width_weights: np.ndarray
) -> jax.Array:
    """The product of height and width with weights that are mostly zero."""
    b, t, h, w, c = x.shape
    (rows, row_weights), (columns, column_weights) = map(
        _neighbours, (height_weights, width_weights)
    )
    shape = (b, t, len(rows), len(columns), c)
    n = math.prod(shape[2:])

    def kernel(
        x_ref, rows_ref, row_weights_ref, columns_ref, column_weights_ref, y_ref
    ):
        element = pl.program_id(0) * _ELEMENTS + jnp.arange(_ELEMENTS)
        inside, place = element < n, jax.lax.div(element, c)
        row, column = jax.lax.div(place, shape[3]), jax.lax.rem(place, shape[3])

        def load(ref, at):
            return triton.load(ref.at[at], mask=inside, other=0)

        def factors(ref, at, count):
            return [load(ref, at * count + i) for i in range(count)]

        frame = pl.program_id(1) * h + load(rows_ref, row)
        start = (frame * w + load(columns_ref, column)) * c + jax.lax.rem(element, c)
        across = factors(column_weights_ref, column, column_weights.shape[1])
        y = jnp.zeros(_ELEMENTS)
        for i, factor in enumerate(factors(row_weights_ref, row, row_weights.shape[1])):
            line = [load(x_ref, start + (i * w + j) * c) for j in range(len(across))]
            y += factor * sum(a * z for a, z in zip(across, line, strict=True))
        place = pl.program_id(1) * n + element
        triton.store(y_ref.at[place], y.astype(x.dtype), mask=inside)

    y = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, _ELEMENTS), b * t),
        out_shape=jax.ShapeDtypeStruct((math.prod(shape),), x.dtype),
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        name="resize",
    )(*(z.reshape(-1) for z in (x, rows, row_weights, columns, column_weights)))
    return y.reshape(shape)
