"""Norms, and the moments of their inputs.

A synthesis compares the moments of what enters every norm, so an operation returns
those of its input beside the normalised tensor. The plain forms are the definition. XLA
for GPUs would read the input again for the norm and for each moment; there a norm is
one kernel with its moments and with the activation that follows it, and the gradient of
a layer norm another, with that of the residual that its input is.
tests/kernels/test_normalization.py holds the kernels, interpreted, against the plain
forms.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton

Activation = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
    """The activation of a norm that nothing follows."""
    return x


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    mask: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias along the last axis.

    Args:
      x: (b, ..., c); computed in float32, whatever its type, by the two-pass formula.
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.
      mask: (...), the positions whose mean is returned; all if None.

    Returns:
      `x` for other uses, whose gradient is then added in the kernel of this one; the
      normalised tensor; and the mean of `x` over positions, (b, c) in float32.
    """
    n = math.prod(x.shape[1:-1])
    mask = np.ones(n) if mask is None else mask.reshape(n)
    share = jnp.asarray(mask / mask.sum(), jnp.float32)
    return _layer_norm_of_shape(x, scale, bias, share, epsilon)


def plain_layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, share: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`layer_norm`, given the share of each position in the mean."""
    y, _ = _standardized(x.astype(jnp.float32), epsilon)
    positions = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
    mean = (positions * share[:, None]).sum(1)
    return x, (y * scale + bias).astype(x.dtype), mean


def _standardized(x, epsilon, c=None, real=True):
    """Rows at mean 0 and variance 1, and by what they were multiplied for that."""
    c = c or x.shape[-1]
    x = jnp.where(real, x - x.sum(-1, keepdims=True) / c, 0.0)
    variance = jnp.square(x).sum(-1, keepdims=True) / c
    factor = jax.lax.rsqrt(variance + epsilon)
    return x * factor, factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _layer_norm(x, scale, bias, share, epsilon):
    def fused(x, scale, bias, share):
        def forward(c, real, x, scale, bias, share):
            y, _ = _standardized(x, epsilon, c, real)
            return y * scale + bias, (x * share,)

        vectors = [scale, bias]
        y, (mean,) = _by_position(
            forward, [x], vectors, per_position=[share], sums=1, name="layer_norm"
        )
        return x, y, mean

    plain = functools.partial(plain_layer_norm, epsilon=epsilon)
    return dispatch.by_platform(plain, gpu=fused)(x, scale, bias, share)


def _layer_norm_forward(x, scale, bias, share, epsilon):
    saved = x.value, scale.value, bias.value, share.value
    return _layer_norm(*saved, epsilon), (saved, _trained(scale, bias))


def _trained(*weights):
    """() if gradients of weights are asked for, else None, as in a synthesis.

    Residuals of a gradient may be None or a tree of arrays, but no bool.
    """
    return () if any(weight.perturbed for weight in weights) else None


def _layer_norm_backward(epsilon, saved, gradients):
    saved, trained = saved
    dresidual, dy, dmean = (
        [] if isinstance(gradient, SymbolicZero) else [gradient]
        for gradient in gradients
    )
    dy = dy or [jnp.zeros_like(saved[0])]

    def fused(saved, dresidual, dy, dmean):
        x, scale, _, share = saved

        def backward(c, real, x, gradient, *rest):
            dresidual, (scale, *dmean, share) = rest[:-others], rest[-others:]
            y, factor = _standardized(x, epsilon, c, real)
            gradient *= scale
            along = (gradient * y).sum(-1, keepdims=True) / c
            mean = gradient.sum(-1, keepdims=True) / c
            dx = factor * (gradient - mean - along * y)
            return sum([*dresidual, *(mean * share for mean in dmean)], dx), ()

        others = 2 + len(dmean)
        dx, _ = _by_position(
            backward,
            [x, *dy, *dresidual],
            [scale],
            per_video=dmean,
            per_position=[share],
            name="layer_norm_gradient",
        )
        return dx

    def plain(saved, dresidual, dy, dmean):
        x, *rest = saved
        form = functools.partial(plain_layer_norm, epsilon=epsilon)
        outputs, transpose = jax.vjp(lambda x: form(x, *rest), x)
        found = zip((dresidual, dy, dmean), outputs, strict=True)
        (dx,) = transpose(tuple(g[0] if g else jnp.zeros_like(y) for g, y in found))
        return dx

    run = dispatch.by_platform(plain, gpu=fused)
    dx = run(saved, dresidual, dy, dmean)
    if trained is None:
        return dx, None, None, None
    x, scale, bias, share = saved
    _, transpose = jax.vjp(
        lambda *weights: plain_layer_norm(x, *weights, share, epsilon)[1], scale, bias
    )
    return dx, *transpose(*dy), None


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward, symbolic_zeros=True)
# jit, so that layers of one shape are traced once
_layer_norm_of_shape = jax.jit(_layer_norm, static_argnums=4)


def batch_norm(
    x: jax.Array,
    factor: jax.Array,
    offset: jax.Array,
    centre: jax.Array,
    activation: Activation = identity,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch norm with given statistics, and what follows it.

    Args:
      x: (b, ..., c).
      factor: (c,).
      offset: (c,).
      centre: (c,), about which the moments are taken.
      activation: follows.
      residual: of the shape of `x`, added before the activation.

    Returns:
      `activation(x * factor + offset + residual)`, and the means over positions of
      `x - centre` and of its square, (b, c) in float32.
    """
    return _batch_norm_of_shape(x, factor, offset, centre, residual, activation)


def plain_batch_norm(x, factor, offset, centre, residual, activation):
    """`batch_norm`, computed in float32."""
    centred = x.astype(jnp.float32) - centre
    axes = tuple(range(1, x.ndim - 1))
    y = activation(_scaled(x, factor, offset, residual)).astype(x.dtype)
    return y, centred.mean(axes), jnp.square(centred).mean(axes)


def _scaled(x, factor, offset, residual):
    y = x.astype(jnp.float32) * factor + offset
    return y if residual is None else y + residual


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _batch_norm(x, factor, offset, centre, residual, activation):
    def fused(x, factor, offset, centre, residual):
        def forward(c, real, x, *rest):
            *residual, factor, offset, centre = rest
            centred = jnp.where(real, x - centre, 0.0)
            part = centred * share
            y = activation(sum(residual, x * factor + offset))
            return y, (part, part * centred)

        share = 1 / math.prod(x.shape[1:-1])
        y, moments = _by_position(
            forward,
            [x] if residual is None else [x, residual],
            [factor, offset, centre],
            sums=2,
            widths=(128, 64, 32),
            name="batch_norm",
        )
        return y, *moments

    plain = functools.partial(plain_batch_norm, activation=activation)
    run = dispatch.by_platform(plain, gpu=fused)
    return run(x, factor, offset, centre, residual)


def _batch_norm_forward(x, factor, offset, centre, residual, activation):
    weights = factor.value, offset.value, centre.value
    arrays = x.value, *weights, residual and residual.value
    y, *moments = _batch_norm(*arrays, activation)
    return (y, *moments), (*arrays, y, _trained(factor, offset, centre))


def _batch_norm_backward(activation, saved, gradients):
    """Elementwise, so that XLA makes it one with what is before and after it."""
    x, factor, offset, centre, residual, y, trained = saved
    dy, dmean, dsquare = (
        None if isinstance(gradient, SymbolicZero) else gradient
        for gradient in gradients
    )
    if dy is None:
        dy = jnp.zeros_like(x)
    gradient = dy.astype(jnp.float32)
    if activation is nn.relu and residual is not None:
        gradient = jnp.where(y > 0, gradient, 0.0)  # one tensor to read, not two
    else:
        _, transpose = jax.vjp(activation, _scaled(x, factor, offset, residual))
        (gradient,) = transpose(gradient)
    dx = gradient * factor
    n = math.prod(x.shape[1:-1])

    def everywhere(per_video: jax.Array) -> jax.Array:
        return jnp.expand_dims(per_video / n, tuple(range(1, x.ndim - 1)))

    if dmean is not None:
        dx += everywhere(dmean)
    if dsquare is not None:
        dx += everywhere(2 * dsquare) * (x.astype(jnp.float32) - centre)
    dx = dx.astype(x.dtype)
    dresidual = None if residual is None else gradient.astype(residual.dtype)
    if trained is None:
        return dx, None, None, None, dresidual
    outputs, transpose = jax.vjp(
        lambda *weights: plain_batch_norm(x, *weights, residual, activation),
        factor,
        offset,
        centre,
    )
    found = zip((dy, dmean, dsquare), outputs, strict=True)
    dweights = transpose(tuple(jnp.zeros_like(y) if g is None else g for g, y in found))
    return dx, *dweights, dresidual


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward, symbolic_zeros=True)
_batch_norm_of_shape = jax.jit(_batch_norm, static_argnums=5)

# About what an H200 ran fastest.
_ELEMENTS = 1024  # of one warp at a time
_PROGRAMS = 1024  # enough to fill the GPU, and few partial sums
_FEW = 8  # turns, one after the other


def _by_position(
    function: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]],
    arrays: Sequence[jax.Array],
    per_channel: Sequence[jax.Array],
    per_video: Sequence[jax.Array] = (),
    per_position: Sequence[jax.Array] = (),
    *,
    sums: int = 0,
    widths: Sequence[int] = (),
    name: str,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """A function of positions in float32, and sums over them.

    It is called with c, with which elements are real, and with tiles (positions,
    channels) of all that is given, whatever is not real being 0. It returns a tile and
    those to be summed.

    Args:
      function: see above.
      arrays: (b, ..., c).
      per_channel: (c,).
      per_video: (b, c).
      per_position: (...).
      sums: how many.
      widths: of a tile, to choose from; all channels by default.
      name: of the kernel.

    Returns:
      (b, ..., c), of the type of the first array, and sums (b, c).
    """
    shape, b, c = arrays[0].shape, arrays[0].shape[0], arrays[0].shape[-1]
    n = math.prod(shape[1:-1])
    width, warps, programs = pl.next_power_of_2(c), 1 + bool(sums), _PROGRAMS
    if widths:
        width = min(widths, key=lambda width: pl.cdiv(c, width) * width)
        warps, programs = 4, 2 * _PROGRAMS
    rows, warps = max(warps * _ELEMENTS // width, 1), max(warps, width // _ELEMENTS)
    across, tiles = pl.cdiv(c, width), pl.cdiv(n, rows)
    turns = max(1, b * across * tiles // programs) if sums else 1
    if sums and tiles <= _FEW:
        turns = tiles  # adding partial sums up would take a kernel as long as this
    blocks = pl.cdiv(tiles, turns)

    def kernel(*refs):
        inputs, (y_ref, *sum_refs) = refs[: -1 - sums], refs[-1 - sums :]
        refs_of = iter(inputs)
        whole = [next(refs_of) for _ in arrays]
        video, program = pl.program_id(1), pl.program_id(0)
        block = jax.lax.div(program, across)
        column = jax.lax.rem(program, across) * width + jnp.arange(width)
        inside = column < c
        fixed = [
            triton.load(next(refs_of).at[column], mask=inside, other=0.0)[None]
            for _ in per_channel
        ]
        fixed += [
            triton.load(next(refs_of).at[video, column], mask=inside, other=0.0)[None]
            for _ in per_video
        ]
        by_row = list(refs_of)

        def add_tile(turn, totals):
            row = (block * turns + turn) * rows + jnp.arange(rows)
            real = (row < n)[:, None] & inside[None]
            element = row[:, None] * c + column[None]
            values = [
                triton.load(ref.at[video, element], mask=real, other=0.0)
                for ref in whole
            ]
            shares = [
                triton.load(ref.at[row], mask=row < n, other=0.0)[:, None]
                for ref in by_row
            ]
            values = [value.astype(jnp.float32) for value in values]
            y, parts = function(c, real, *values, *fixed, *shares)
            y = y.astype(y_ref.dtype)
            triton.store(y_ref.at[video, element], y, mask=real)
            if not widths:  # a thread has all positions
                parts = [part.sum(0, keepdims=True) for part in parts]
            return tuple(map(jnp.add, totals, parts))

        totals = (jnp.zeros((rows if widths else 1, width), jnp.float32),) * sums
        totals = jax.lax.fori_loop(0, turns, add_tile, totals)
        for ref, total in zip(sum_refs, totals, strict=True):
            triton.store(ref.at[video, block, column], total.sum(0), mask=inside)

    y, *partial = pl.pallas_call(
        kernel,
        grid=(blocks * across, b),
        out_shape=[
            jax.ShapeDtypeStruct((b, n * c), arrays[0].dtype),
            *[jax.ShapeDtypeStruct((b, blocks, c), jnp.float32)] * sums,
        ],
        compiler_params=triton.CompilerParams(num_warps=warps),
        name=name,
    )(
        *(x.reshape(b, n * c) for x in arrays),
        *(vector.astype(jnp.float32) for vector in (*per_channel, *per_video)),
        *per_position,
    )
    totals = (part[:, 0] if blocks == 1 else part.sum(1) for part in partial)
    return y.reshape(shape), tuple(totals)
