"""Max pooling of videos, in the form that each machine runs fast.

`plain` is its definition, and what CPUs and TPUs run. XLA looks for the maxima again
for the gradient and scatters, which a GPU is slow at. There pooling in space notes
where each maximum was, and its gradient reads there which gradients meet.
tests/kernels/test_pooling.py holds one against the other.
"""

import functools
import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels import dispatch

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
    gpu = sized(by_positions) if in_space and few else None
    return dispatch.by_platform(sized(plain), gpu=gpu, old_gpu=gpu)(x)


def plain(x: jax.Array, window: Size3, stride: Size3, padding: Size3) -> jax.Array:
    """XLA's window reduction."""
    return nn.max_pool(x, window, stride, [(p, p) for p in padding])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def by_positions(
    x: jax.Array, window: Size3, stride: Size3, padding: Size3
) -> jax.Array:
    """Max pooling in space that notes where each maximum is, for its gradient."""
    return _maxima(x, window, stride, padding)[0]


def _by_positions_forward(x, window, stride, padding):
    y, positions = _maxima(x, window, stride, padding)
    return y, (x, positions)


def _by_positions_backward(window, stride, padding, saved, gradient):
    x, positions = saved  # x for its shape alone
    dx = _spread(gradient, positions, x.shape[2:4], window, stride, padding)
    return (dx,)


by_positions.defvjp(_by_positions_forward, _by_positions_backward)

_POSITION = jnp.int8  # of a maximum in its window, row by row


def _maxima(
    x: jax.Array, window: Size3, stride: Size3, padding: Size3
) -> tuple[jax.Array, jax.Array]:
    """Maxima (b, t, h', w', c), and the positions of the first ones."""
    (_, kh, kw), (_, sh, sw), (_, ph, pw) = window, stride, padding
    padded = jnp.pad(
        x,
        ((0, 0), (0, 0), (ph, ph), (pw, pw), (0, 0)),
        constant_values=-jnp.inf,
    )
    height, width = padded.shape[2] - kh + 1, padded.shape[3] - kw + 1
    best, position = padded[:, :, :height:sh, :width:sw], jnp.int8(0)
    for tap, (i, j) in enumerate(itertools.product(range(kh), range(kw))):
        values = padded[:, :, i : i + height : sh, j : j + width : sw]
        position = jnp.where(values > best, _POSITION(tap), position)
        best = jnp.maximum(best, values)
    return best, position


def _spread(
    gradient: jax.Array,
    positions: jax.Array,
    size: tuple[int, int],
    window: Size3,
    stride: Size3,
    padding: Size3,
) -> jax.Array:
    """The gradient of x: each element adds up those of windows whose maximum it is."""
    (_, kh, kw), (_, sh, sw), (_, ph, pw) = window, stride, padding

    def from_windows(of_windows: jax.Array, tap: tuple[int, int]) -> jax.Array:
        """Windows' values at the element that is this tap of them, else zeros."""
        margins = []
        for n, m, start, step in zip(
            size,
            of_windows.shape[2:4],
            (tap[0] - ph, tap[1] - pw),
            (sh, sw),
            strict=True,
        ):
            end = start + (m - 1) * step + 1
            margins.append((start, n - end, step - 1))
        zero = jnp.zeros((), of_windows.dtype)
        nothing = (0, 0, 0)
        return jax.lax.pad(of_windows, zero, (nothing, nothing, *margins, nothing))

    total: jax.Array | float = 0.0
    for tap, at in enumerate(itertools.product(range(kh), range(kw))):
        dy = jnp.where(positions == tap, gradient, jnp.zeros((), gradient.dtype))
        total += from_windows(dy, at).astype(jnp.float32)
    return jnp.asarray(total).astype(gradient.dtype)
