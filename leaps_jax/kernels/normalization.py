"""Norms, and what is observed of their inputs, in the form each machine runs fast.

`layer_norm` is the definition, and what CPUs and TPUs run, as Flax's batch norm; means
and moments of the observed tensor are there taken by who asks for them. XLA for GPUs
reads that tensor again for each of them. So on a GPU a norm is one kernel with them and
with what follows it, and a layer norm's gradient another, with all else that reaches
its input.
tests/kernels/test_normalization.py holds them, interpreted, against their definitions.
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
from jax.experimental.pallas import triton

from leaps_jax.kernels.dispatch import kernel_or

Then = Callable[[jax.Array], jax.Array]


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias along the last axis.

    Args:
      x: (..., c); computed in float32, whatever its type, by the two-pass formula.
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.
    """
    y, _ = _standardized(x.astype(jnp.float32), epsilon)
    return (y * scale + bias).astype(x.dtype)


def _standardized(x, epsilon, c=None, real=True):
    """Rows at mean 0 and variance 1, and by what they were multiplied for that."""
    c = c or x.shape[-1]
    x = jnp.where(real, x - x.sum(-1, keepdims=True) / c, 0.0)
    variance = jnp.square(x).sum(-1, keepdims=True) / c
    factor = jax.lax.rsqrt(variance + epsilon)
    return x * factor, factor


def observed_layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    counted: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A layer norm beside its input and the mean of that, for GPUs.

    Args:
      x: (b, ..., c).
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.
      counted: (...), which positions the mean is of; all if None.

    Returns:
      `x` as it is, for all that uses it beside the norm; `layer_norm` of it; and its
      mean over positions, (b, c) in float32.
    """
    n = math.prod(x.shape[1:-1])
    counted = np.ones(n) if counted is None else counted.reshape(n)
    share = jnp.asarray(counted / counted.sum(), jnp.float32)
    return _layer_norm_of_shape(x, scale, bias, share, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _observed_layer_norm(x, scale, bias, share, epsilon):
    def by_kernel(x, scale, bias, share):
        def forward(c, real, x, scale, bias, share):
            y, _ = _standardized(x, epsilon, c, real)
            return y * scale + bias, (x * share,)

        vectors = [scale, bias]
        y, (mean,) = _by_position(
            forward, [x], vectors, per_position=[share], sums=1, name="layer_norm"
        )
        return x, y, mean

    plain = functools.partial(_plain_layer_norm, epsilon=epsilon)
    return jax.lax.platform_dependent(
        x, scale, bias, share, cuda=kernel_or(plain, kernel=by_kernel), default=plain
    )


def _plain_layer_norm(x, scale, bias, share, epsilon):
    positions = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
    mean = jnp.einsum("bnc,n->bc", positions, share)
    return x, layer_norm(x, scale, bias, epsilon), mean


def _observed_layer_norm_forward(x, scale, bias, share, epsilon):
    of = x.value, scale.value, bias.value, share.value
    return _observed_layer_norm(*of, epsilon), (of, _trained(scale, bias))


def _trained(*weights):
    """Something if there are gradients of them, else nothing: not so in a synthesis."""
    return () if any(weight.perturbed for weight in weights) else None


def _observed_layer_norm_backward(epsilon, saved, gradients):
    saved, trained = saved
    beside, of_y, of_mean = (
        [] if isinstance(gradient, SymbolicZero) else [gradient]
        for gradient in gradients
    )
    of_y = of_y or [jnp.zeros_like(saved[0])]

    def by_kernel(saved, beside, of_y, of_mean):
        x, scale, _, share = saved

        def backward(c, real, x, gradient, *rest):
            beside, (scale, *of_mean, share) = rest[:-others], rest[-others:]
            y, factor = _standardized(x, epsilon, c, real)
            gradient *= scale
            along = (gradient * y).sum(-1, keepdims=True) / c
            mean = gradient.sum(-1, keepdims=True) / c
            total = factor * (gradient - mean - along * y)
            return sum([*beside, *(mean * share for mean in of_mean)], total), ()

        others = 2 + len(of_mean)
        of_x, _ = _by_position(
            backward,
            [x, *of_y, *beside],
            [scale],
            per_video=of_mean,
            per_position=[share],
            name="layer_norm_gradient",
        )
        return of_x

    def plain(saved, beside, of_y, of_mean):
        x, *rest = saved
        outputs, transpose = jax.vjp(lambda x: _plain_layer_norm(x, *rest, epsilon), x)
        found = zip((beside, of_y, of_mean), outputs, strict=True)
        (of_x,) = transpose(tuple(g[0] if g else jnp.zeros_like(y) for g, y in found))
        return of_x

    of_x = jax.lax.platform_dependent(
        saved,
        beside,
        of_y,
        of_mean,
        cuda=kernel_or(plain, kernel=by_kernel),
        default=plain,
    )
    if trained is None:
        return of_x, None, None, None
    x, scale, bias, _ = saved
    _, transpose = jax.vjp(lambda *of: layer_norm(x, *of, epsilon), scale, bias)
    return of_x, *transpose(*of_y), None


_observed_layer_norm.defvjp(
    _observed_layer_norm_forward, _observed_layer_norm_backward, symbolic_zeros=True
)
# jit, so that layers of one shape are traced once
_layer_norm_of_shape = jax.jit(_observed_layer_norm, static_argnums=4)


def observed_batch_norm(
    x: jax.Array,
    factor: jax.Array,
    offset: jax.Array,
    centre: jax.Array,
    then: Then,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch norm with given statistics, and its input's moments, for GPUs.

    Args:
      x: (b, ..., c).
      factor: (c,).
      offset: (c,).
      centre: (c,), about which the moments are taken.
      then: of what comes of it.
      added: of the shape of `x`, before that.

    Returns:
      `then(x * factor + offset + added)`, and the means over positions of `x - centre`
      and of its square, (b, c) in float32.
    """
    return _batch_norm_of_shape(x, factor, offset, centre, added, then)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _observed_batch_norm(x, factor, offset, centre, added, then):
    def by_kernel(x, factor, offset, centre, added):
        def forward(c, real, x, *rest):
            *added, factor, offset, centre = rest
            centred = jnp.where(real, x - centre, 0.0)
            part = centred * share
            y = then(sum(added, x * factor + offset))
            return y, (part, part * centred)

        share = 1 / math.prod(x.shape[1:-1])
        y, moments = _by_position(
            forward,
            [x] if added is None else [x, added],
            [factor, offset, centre],
            sums=2,
            widths=(128, 64, 32),
            name="batch_norm",
        )
        return y, *moments

    plain = functools.partial(_plain_batch_norm, then=then)
    return jax.lax.platform_dependent(
        x,
        factor,
        offset,
        centre,
        added,
        cuda=kernel_or(plain, kernel=by_kernel),
        default=plain,
    )


def _plain_batch_norm(x, factor, offset, centre, added, then):
    centred = x.astype(jnp.float32) - centre
    axes = tuple(range(1, x.ndim - 1))
    y = then(_scaled(x, factor, offset, added)).astype(x.dtype)
    return y, centred.mean(axes), jnp.square(centred).mean(axes)


def _scaled(x, factor, offset, added):
    y = x.astype(jnp.float32) * factor + offset
    return y if added is None else y + added


def _observed_batch_norm_forward(x, factor, offset, centre, added, then):
    of = x.value, factor.value, offset.value, centre.value, added and added.value
    y, *moments = _observed_batch_norm(*of, then)
    return (y, *moments), (*of, y, _trained(factor, offset, centre))


def _observed_batch_norm_backward(then, saved, gradients):
    """Elementwise, so that XLA makes it one with what is before and after it."""
    x, factor, offset, centre, added, y, trained = saved
    of_y, of_mean, of_square = (
        None if isinstance(gradient, SymbolicZero) else gradient
        for gradient in gradients
    )
    if of_y is None:
        of_y = jnp.zeros_like(x)
    gradient = of_y.astype(jnp.float32)
    if then is nn.relu and added is not None:
        gradient = jnp.where(y > 0, gradient, 0.0)  # one tensor to read, not two
    else:
        _, transpose = jax.vjp(then, _scaled(x, factor, offset, added))
        (gradient,) = transpose(gradient)
    of_x = gradient * factor
    n = math.prod(x.shape[1:-1])

    def everywhere(of_video: jax.Array) -> jax.Array:
        return jnp.expand_dims(of_video / n, tuple(range(1, x.ndim - 1)))

    if of_mean is not None:
        of_x += everywhere(of_mean)
    if of_square is not None:
        of_x += everywhere(2 * of_square) * (x.astype(jnp.float32) - centre)
    of_x = of_x.astype(x.dtype)
    of_added = None if added is None else gradient.astype(added.dtype)
    if trained is None:
        return of_x, None, None, None, of_added
    outputs, transpose = jax.vjp(
        lambda *of: _plain_batch_norm(x, *of, added, then), factor, offset, centre
    )
    found = zip((of_y, of_mean, of_square), outputs, strict=True)
    of_weights = transpose(
        tuple(jnp.zeros_like(y) if g is None else g for g, y in found)
    )
    return of_x, *of_weights, of_added


_observed_batch_norm.defvjp(
    _observed_batch_norm_forward, _observed_batch_norm_backward, symbolic_zeros=True
)
_batch_norm_of_shape = jax.jit(_observed_batch_norm, static_argnums=5)

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
