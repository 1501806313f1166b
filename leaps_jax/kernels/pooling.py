"""Max pooling of videos, in the form that each machine runs fast.

`plain` is its definition, and what CPUs and TPUs run. On a GPU pooling in space is a
kernel that notes where each maximum was, and its gradient another that reads there
which gradients meet: XLA looks for the maxima again and scatters.
tests/kernels/test_pooling.py holds them, interpreted, against it.
"""

import functools
import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton

Size3 = tuple[int, int, int]


def max_pool(x: jax.Array, window: Size3, stride: Size3, padding: Size3) -> jax.Array:
    """Max pooling of (b, t, h, w, c) with the same padding on both sides.

    The gradient of an output goes to the first of equal maxima.

    Args:
      x: (b, t, h, w, c).
      window: in time, height and width.
      stride: likewise.
      padding: likewise.
    """

    def sized(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda x: form(x, window, stride, padding)

    in_space = (window[0], stride[0], padding[0]) == (1, 1, 0)
    few = math.prod(window) <= jnp.iinfo(_POSITION).max
    gpu = sized(fused) if in_space and few else None
    return dispatch.by_platform(sized(plain), gpu=gpu)(x)


def plain(x: jax.Array, window: Size3, stride: Size3, padding: Size3) -> jax.Array:
    """XLA's window reduction."""
    return nn.max_pool(x, window, stride, [(p, p) for p in padding])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def fused(x: jax.Array, window: Size3, stride: Size3, padding: Size3) -> jax.Array:
    """One kernel, for GPUs; every frame by itself."""
    y, *_ = _maxima(x, window, stride, padding, positions=False)
    return y


def _fused_forward(x, window, stride, padding):
    y, positions = _maxima(x, window, stride, padding, positions=True)
    return y, (x, positions)


def _fused_backward(window, stride, padding, saved, gradient):
    x, positions = saved  # x for its shape alone
    dx = _spread(gradient, positions, x.shape[2:4], window, stride, padding)
    return (dx,)


fused.defvjp(_fused_forward, _fused_backward)

_POSITION = jnp.int8  # of a maximum in its window, row by row
_THREADS = 128


def _elements(c: int) -> int:
    """Of one program: as many neighbours a thread as surely are of one place.

    What they load and whether they do is one instruction.
    """
    return _THREADS * math.gcd(c, 8)


def _cells(c: int, columns: int) -> tuple[jax.Array, ...]:
    """Row, column and channel of this program's elements of flat (rows, columns, c)."""
    elements = _elements(c)
    element = pl.program_id(0) * elements + jnp.arange(elements)
    place, channel = jax.lax.div(element, c), jax.lax.rem(element, c)
    return jax.lax.div(place, columns), jax.lax.rem(place, columns), channel


def _maxima(
    x: jax.Array, window: Size3, stride: Size3, padding: Size3, positions: bool
) -> list[jax.Array]:
    """Maxima (b, t, h', w', c), and the positions of the first ones where asked."""
    b, t, h, w, c = x.shape
    (_, kh, kw), (_, sh, sw), (_, ph, pw) = window, stride, padding
    types = [x.dtype, _POSITION] if positions else [x.dtype]
    height, width = (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1

    def pool(x_ref, *refs):
        frame = pl.program_id(1)
        row, column, channel = _cells(c, width)
        inside = row < height
        best = jnp.full(_elements(c), -jnp.inf, jnp.float32)
        position = jnp.zeros(_elements(c), jnp.int32)
        numbers = jnp.ones(_elements(c), bool)
        for tap, (i, j) in enumerate(itertools.product(range(kh), range(kw))):
            at, o = row * sh + i - ph, column * sw + j - pw
            values = triton.load(
                x_ref.at[frame, (at * w + o) * c + channel],
                mask=inside & (at >= 0) & (at < h) & (o >= 0) & (o < w),
                other=-jnp.inf,
            ).astype(jnp.float32)
            position = jnp.where(values > best, tap, position)
            best = jnp.maximum(best, values)
            numbers &= values == values
        # Triton's maximum passes over what is no number
        best = jnp.where(numbers, best, jnp.nan)
        element = (row * width + column) * c + channel
        for ref, tile in zip(refs, (best, position), strict=False):
            triton.store(ref.at[frame, element], tile.astype(ref.dtype), mask=inside)

    maxima = pl.pallas_call(
        pool,
        grid=(pl.cdiv(height * width * c, _elements(c)), b * t),
        out_shape=[
            jax.ShapeDtypeStruct((b * t, height * width * c), dtype) for dtype in types
        ],
        compiler_params=triton.CompilerParams(num_warps=_THREADS // 32),
        name="max_pool",
    )(x.reshape(b * t, -1))
    return [y.reshape(b, t, height, width, c) for y in maxima]


def _spread(
    gradient: jax.Array,
    positions: jax.Array,
    size: tuple[int, int],
    window: Size3,
    stride: Size3,
    padding: Size3,
) -> jax.Array:
    """Sums of the gradients of those windows whose maximum an element is.

    A thread makes a cell as large as the stride, of elements that each meet a known
    part of the window.
    """
    b, t, height, width, c = gradient.shape
    (h, w), (_, kh, kw), (_, sh, sw), (_, ph, pw) = size, window, stride, padding
    rows, columns = pl.cdiv(h, sh), pl.cdiv(w, sw)

    def spread(gradient_ref, position_ref, x_ref):
        frame = pl.program_id(1)
        row, column, channel = _cells(c, columns)
        inside = row < rows

        @functools.cache
        def window_at(i: int, j: int) -> list[jax.Array]:
            at, o = row + i, column + j
            real = inside & (at >= 0) & (at < height) & (o >= 0) & (o < width)
            element = (at * width + o) * c + channel
            return [
                triton.load(ref.at[frame, element], mask=real, other=0).astype(dtype)
                for ref, dtype in (
                    (gradient_ref, jnp.float32),
                    (position_ref, jnp.int32),
                )
            ]

        for m, n in itertools.product(range(sh), range(sw)):
            total = jnp.zeros(_elements(c), jnp.float32)
            for i, j in itertools.product(
                range((m + ph) % sh, kh, sh), range((n + pw) % sw, kw, sw)
            ):
                dy, position = window_at((m + ph - i) // sh, (n + pw - j) // sw)
                total += jnp.where(position == i * kw + j, dy, 0.0)
            at, o = row * sh + m, column * sw + n
            triton.store(
                x_ref.at[frame, (at * w + o) * c + channel],
                total.astype(x_ref.dtype),
                mask=inside & (at < h) & (o < w),
            )

    dx = pl.pallas_call(
        spread,
        grid=(pl.cdiv(rows * columns * c, _elements(c)), b * t),
        out_shape=jax.ShapeDtypeStruct((b * t, h * w * c), gradient.dtype),
        compiler_params=triton.CompilerParams(num_warps=_THREADS // 32),
        name="max_pool_gradient",
    )(gradient.reshape(b * t, -1), positions.reshape(b * t, -1))
    return dx.reshape(b, t, h, w, c)
