"""Layer norm, in the form that each machine runs fast.

`plain` is its definition, and what CPUs and TPUs run. On a GPU it is a kernel, and its
gradient another: each reads its arrays once, where XLA has passes for the moments and
for what follows. tests/test_normalization.py holds them, interpreted, against it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias along the last axis.

    Args:
      x: (..., c); computed in float32, whatever its type.
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.
    """
    return jax.lax.platform_dependent(
        x,
        scale,
        bias,
        cuda=functools.partial(fused, epsilon=epsilon),
        default=functools.partial(plain, epsilon=epsilon),
    )


def plain(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """By the two-pass formula."""
    y, _ = _standardized(x.astype(jnp.float32), epsilon)
    return (y * scale + bias).astype(x.dtype)


def _standardized(x, epsilon, c=None, real=True):
    """Rows at mean 0 and variance 1, and by what they were multiplied for that."""
    c = c or x.shape[-1]
    x = jnp.where(real, x - x.sum(-1, keepdims=True) / c, 0.0)
    variance = jnp.square(x).sum(-1, keepdims=True) / c
    factor = jax.lax.rsqrt(variance + epsilon)
    return x * factor, factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """As one kernel, for GPUs."""

    def forward(c, real, x, scale, bias):
        y, _ = _standardized(x, epsilon, c, real)
        return y * scale + bias

    return _by_rows(forward, [x], [scale, bias], "layer_norm")


def _fused_forward(x, scale, bias, epsilon):
    return fused(x, scale, bias, epsilon), (x, scale, bias)


def _fused_backward(epsilon, saved, gradient):
    x, scale, bias = saved

    def backward(c, real, x, gradient, scale):
        y, factor = _standardized(x, epsilon, c, real)
        gradient *= scale
        along = (gradient * y).sum(-1, keepdims=True) / c
        return factor * (gradient - gradient.sum(-1, keepdims=True) / c - along * y)

    of_x = _by_rows(backward, [x, gradient], [scale], "layer_norm_gradient")
    # dead code where weights are constants, as in a synthesis
    _, transpose = jax.vjp(lambda *of: plain(x, *of, epsilon), scale, bias)
    return of_x, *transpose(gradient)


fused.defvjp(_fused_forward, _fused_backward)

_ELEMENTS = 1024  # of one warp, in rows filled up to a power of two


def _by_rows(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    name: str,
) -> jax.Array:
    """A function of rows in float32, those of arrays (..., c) and vectors (c,).

    It is called with c and with which elements of the rows, filled up with zeros,
    are real.
    """
    shape, c = arrays[0].shape, arrays[0].shape[-1]
    n = arrays[0].size // c
    width = pl.next_power_of_2(c)
    rows, warps = max(_ELEMENTS // width, 1), max(width // _ELEMENTS, 1)

    def kernel(*refs):
        *refs, result = refs
        row = pl.program_id(0) * rows + jnp.arange(rows)[:, None]
        column = jnp.arange(width)[None]
        element, real = row * c + column, (row < n) & (column < c)
        of_column, in_row = column[0], column[0] < c
        values = [
            triton.load(ref.at[element], mask=real, other=0.0).astype(jnp.float32)
            for ref in refs[: len(arrays)]
        ]
        values += [
            triton.load(ref.at[of_column], mask=in_row, other=0.0)[None]
            for ref in refs[len(arrays) :]
        ]
        y = function(c, real, *values).astype(result.dtype)
        triton.store(result.at[element], y, mask=real)

    flat = [x.reshape(-1) for x in arrays]
    y = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, rows),),
        out_shape=jax.ShapeDtypeStruct((n * c,), arrays[0].dtype),
        compiler_params=triton.CompilerParams(num_warps=warps),
        name=name,
    )(*flat, *(vector.astype(jnp.float32) for vector in vectors))
    return y.reshape(shape)
