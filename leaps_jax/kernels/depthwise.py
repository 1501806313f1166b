"""Depthwise convolutions of videos, in the form that each machine runs fast.

`native` is the definition, and what TPUs run. On a GPU XLA's convolution with a group
per channel is 8 times as slow as any other form; there it is a Triton kernel, and on a
CPU a sum of shifted products. tests/kernels/test_convolutions.py holds each form
against its definition, the kernel interpreted.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from leaps_jax.kernels import dispatch
from leaps_jax.kernels.dispatch import triton

Size3 = tuple[int, int, int]


# jit here and below, so that layers of one shape are traced once
@functools.partial(jax.jit, static_argnums=2)
def convolve(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """A 3D convolution of every channel by itself, padded by k // 2 on both sides.

    Args:
      x: (b, t, h, w, c).
      kernel: (kt, kh, kw, 1, c), of odd sizes, of the type of `x`.
      stride: of time, height and width.

    Returns:
      (b, t', h', w', c); sums are in float32.
    """

    def strided(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda x, kernel: form(x, kernel, stride)

    run = dispatch.by_platform(
        strided(native),
        gpu=strided(fused),
        old_gpu=strided(shifted_products),
        cpu=strided(shifted_products),
    )
    return run(x, kernel)


def native(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """XLA's convolution with a group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted_products(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """The sum of shifted products that defines it."""
    b, *size, c = x.shape
    margins = [(0, 0), *((k // 2, k // 2) for k in kernel.shape[:3]), (0, 0)]
    padded = jnp.pad(x, margins)
    spans = [(n - 1) // s * s + 1 for n, s in zip(size, stride, strict=True)]
    total: jax.Array | float = 0.0
    for i, j, k in itertools.product(*map(range, kernel.shape[:3])):
        end = (b, i + spans[0], j + spans[1], k + spans[2], c)
        part = jax.lax.slice(padded, (0, i, j, k, 0), end, (1, *stride, 1))
        total += part.astype(jnp.float32) * kernel[i, j, k, 0].astype(jnp.float32)
    return jnp.asarray(total).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fused(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """One kernel, for GPUs; the gradient of its input is the same kernel."""
    t, h, w = (-(-n // s) for n, s in zip(x.shape[1:4], stride, strict=True))
    return _correlate(x, kernel, (t, h, w), stride, (1, 1, 1))


def _fused_forward(x, kernel, stride):
    return fused(x, kernel, stride), (x, kernel)


def _fused_backward(stride, saved, gradient):
    x, kernel = saved
    flipped = kernel[::-1, ::-1, ::-1]
    dx = _correlate(gradient, flipped, x.shape[1:4], (1, 1, 1), stride)
    # dead code where weights are constants, as in a synthesis
    _, transpose = jax.vjp(lambda k: native(x, k, stride), kernel)
    return dx, *transpose(gradient)


fused.defvjp(_fused_forward, _fused_backward)

_FRAMES = 4  # of the output that a program makes: it reads a frame once for all of them
_THREADS = 128


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _correlate(
    x: jax.Array, kernel: jax.Array, size: Size3, stride: Size3, dilation: Size3
) -> jax.Array:
    """y[p] = Σ_k kernel[k] x[(p stride + k - K // 2) / dilation], over whole places.

    With a stride it is a convolution, with a dilation the transpose of one. The output
    is cut into cells of a few frames, rows and columns. A program is told apart by its
    elements of the flat (cells' rows, cells' columns, channels), the cells' frames and
    its video.
    """
    b, t, h, w, c = x.shape
    frames, height, width = size
    kt, kh, kw = kernel.shape[:3]
    # places that a dilation of 2 tells apart have a cell of their own: each meets other
    # taps, and these are then known now
    cell = (min(_FRAMES, frames), *(min(d, 2) for d in dilation[1:]))
    times, rows, columns = (-(-n // k) for n, k in zip(size, cell, strict=True))
    # As many neighbours a thread as surely are channels of one place: what they load
    # and whether they do is one instruction.
    elements = _THREADS * math.gcd(c, 8)

    def met(first: jax.Array | int, axis: int) -> list[tuple]:
        """What a cell reads along an axis: where, whether it is there, by what taps.

        The taps are pairs of one of the kernel and a place of the cell.
        """
        n, k, s, d = x.shape[1 + axis], kernel.shape[axis], stride[axis], dilation[axis]
        taps = collections.defaultdict(list)
        for place, tap in itertools.product(range(cell[axis]), range(k)):
            taps[place * s + tap - k // 2].append((tap, place))
        reads = []
        for offset, pairs in sorted(taps.items()):
            at = first * cell[axis] * s + offset
            real = at >= 0
            if cell[axis] % d:
                real &= jax.lax.rem(at, d) == 0
            elif offset % d:
                continue
            at = at // d if isinstance(at, int) else jax.lax.div(at, d)
            real &= at < n
            if real is not False:
                reads.append((at, real, pairs))
        return reads

    def correlate(x_ref, kernel_ref, y_ref):
        video = pl.program_id(2)
        element = pl.program_id(0) * elements + jnp.arange(elements)
        channel, place = jax.lax.rem(element, c), jax.lax.div(element, c)
        row, column = jax.lax.div(place, columns), jax.lax.rem(place, columns)
        inside = row < rows

        @functools.cache
        def weights(i: int, j: int, k: int) -> jax.Array:
            tap = (i * kh + j) * kw + k
            return triton.load(kernel_ref.at[tap, channel], mask=inside, other=0.0)

        sums = {
            place: jnp.zeros(elements, jnp.float32)
            for place in itertools.product(*map(range, cell))
        }
        in_time = met(0 if times == 1 else pl.program_id(1), 0)
        for (j, a, row_reads), (k, o, column_reads) in itertools.product(
            met(row, 1), met(column, 2)
        ):
            offset = (j * w + k) * c + channel
            for i, real, frame_reads in in_time:
                # a choice between two numbers known now would be lowered as one of bits
                frame = i if real is True else jnp.where(real, i, 0)
                values = triton.load(
                    x_ref.at[video, frame, offset],
                    mask=inside & a & o & real,
                    other=0.0,
                ).astype(jnp.float32)
                for pairs in itertools.product(frame_reads, row_reads, column_reads):
                    taps, place = zip(*pairs, strict=True)
                    sums[place] += weights(*taps) * values
        for (n, j, k), total in sums.items():
            frame = pl.program_id(1) * cell[0] + n
            at, o = row * cell[1] + j, column * cell[2] + k
            triton.store(
                y_ref.at[
                    video,
                    jnp.minimum(frame, frames - 1),
                    (at * width + o) * c + channel,
                ],
                total.astype(y_ref.dtype),
                mask=inside & (frame < frames) & (at < height) & (o < width),
            )

    y = pl.pallas_call(
        correlate,
        grid=(-(-rows * columns * c // elements), times, b),
        out_shape=jax.ShapeDtypeStruct((b, frames, height * width * c), x.dtype),
        compiler_params=triton.CompilerParams(num_warps=_THREADS // 32),
        name="depthwise",
    )(x.reshape(b, t, -1), kernel.reshape(kt * kh * kw, c).astype(jnp.float32))
    return y.reshape(b, *size, c)
