"""Convolutions of videos (b, t, h, w, c), in the form that each machine runs fast.

`native` and `native_depthwise` are the definitions, and what TPUs run. Elsewhere XLA's
3D convolutions are slow: on a GPU it moves channels to the front and back around each
of them, and a CPU takes up to some hundred times as long for a gradient. So there
`convolve` is a 2D convolution, and `depthwise` a Triton kernel on a GPU and a sum of
shifted products on a CPU. tests/test_convolutions.py holds each form against its
definition, the kernel interpreted.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]


# jit here and below, so that layers of one shape are traced once
@functools.partial(jax.jit, static_argnums=(2, 3))
def convolve(
    x: jax.Array, kernel: jax.Array, stride: Size3, padding: Size3
) -> jax.Array:
    """A 3D convolution, padded by the same zeros on both sides.

    Args:
      x: (b, t, h, w, c).
      kernel: (kt, kh, kw, c, d), of the type of `x`.
      stride: of time, height and width.
      padding: likewise.

    Returns:
      (b, t', h', w', d).
    """

    def strided(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return functools.partial(form, stride=stride, padding=padding)

    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=strided(_with_products),
        cuda=functools.partial(strided(_in_two_dimensions), multiple=8),
        default=strided(native),
    )


def native(x: jax.Array, kernel: jax.Array, stride: Size3, padding: Size3) -> jax.Array:
    """As XLA's 3D convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def _with_products(
    x: jax.Array, kernel: jax.Array, stride: Size3, padding: Size3
) -> jax.Array:
    """`_in_two_dimensions`, and of one place as the matrix product that it is."""
    if kernel.shape[:3] != (1, 1, 1) or padding != (0, 0, 0):
        return _in_two_dimensions(x, kernel, stride, padding, form=_with_gradients)
    return x[:, :: stride[0], :: stride[1], :: stride[2]] @ kernel[0, 0, 0]


def _in_two_dimensions(
    x: jax.Array, kernel: jax.Array, stride: Size3, padding: Size3, **options: Any
) -> jax.Array:
    """As a 2D convolution; `options` are those of `_convolve_frames`."""
    b, t, h, w, c = x.shape
    steps = kernel.shape[0]
    if steps > 1 and kernel.shape[1:3] == (1, 1) and padding[1:] == (0, 0):
        # along time alone: its axis and one for all places
        x = x[:, :, :: stride[1], :: stride[2]]
        h, w = x.shape[2:4]
        y = _convolve_frames(
            x.reshape(b, t, h * w, c),
            kernel[:, 0],
            (stride[0], 1),
            (padding[0], 0),
            **options,
        )
        return y.reshape(b, -1, h, w, y.shape[-1])
    if steps > 1 or padding[0]:
        # the frames that an output sees become channels of one
        x = jnp.pad(x, [(0, 0), (padding[0],) * 2, *[(0, 0)] * 3])
        span = (x.shape[1] - steps) // stride[0] * stride[0] + 1
        x = jnp.concatenate([x[:, i : i + span : stride[0]] for i in range(steps)], -1)
    else:
        x = x[:, :: stride[0]]
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*kernel.shape[1:3], steps * c, -1)
    y = _convolve_frames(
        x.reshape(-1, h, w, steps * c),
        flat,
        stride[1:],
        padding[1:],
        cells=c < 16 or kernel.shape[1:3] == stride[1:],
        **options,
    )
    return y.reshape(b, -1, *y.shape[1:])


def _two_dimensional(
    x: jax.Array, kernel: jax.Array, stride: Size2, padding: Size2
) -> jax.Array:
    """A 2D convolution of (n, h, w, c)."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_frames(
    x: jax.Array,
    kernel: jax.Array,
    stride: Size2,
    padding: Size2,
    cells: bool = False,
    multiple: int = 1,
    form: Callable[..., jax.Array] = _two_dimensional,
) -> jax.Array:
    """A 2D convolution of a form, computed at stride 1 if `cells`.

    Its channels are then filled up to a multiple: cuDNN would copy them for that.
    """
    if cells and stride != (1, 1):
        # every stride x stride places become channels of one
        size = kernel.shape[:2]
        spans = [-(-k // s) for k, s in zip(size, stride, strict=True)]
        outputs = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(x.shape[1:3], padding, size, stride, strict=True)
        ]
        edges = [
            (p, (o - 1 + m) * s - n - p, 0)
            for o, m, s, n, p in zip(
                outputs, spans, stride, x.shape[1:3], padding, strict=True
            )
        ]
        zero = jnp.zeros((), x.dtype)
        x = jax.lax.pad(x, zero, [(0, 0, 0), *edges, (0, 0, 0)])
        x = _cells_to_channels(x, stride)
        rest = [(0, m * s - k, 0) for m, s, k in zip(spans, stride, size, strict=True)]
        kernel = jax.lax.pad(kernel, zero, [*rest, (0, 0, 0), (0, 0, 0)])
        kernel = _cells_to_channels(kernel.transpose(3, 0, 1, 2), stride)
        kernel = kernel.transpose(1, 2, 3, 0)
        filling = (0, -x.shape[-1] % multiple, 0)
        x = jax.lax.pad(x, zero, [(0, 0, 0)] * 3 + [filling])
        kernel = jax.lax.pad(kernel, zero, [(0, 0, 0)] * 2 + [filling, (0, 0, 0)])
        stride, padding = (1, 1), (0, 0)
    return form(x, kernel, stride, padding)


def _cells_to_channels(x: jax.Array, cell: tuple[int, int]) -> jax.Array:
    n, h, w, c = x.shape
    i, j = cell
    x = x.reshape(n, h // i, i, w // j, j, c).swapaxes(2, 3)
    return x.reshape(n, h // i, w // j, i * j * c)


def _with_margins(
    x: jax.Array, kernel: jax.Array, stride: Size2, padding: Size2
) -> jax.Array:
    """A 2D convolution that has zeros around the frames, for CPUs.

    XLA takes 2 to 6 times as long for one that has none.
    """
    if stride != (1, 1) or padding != (0, 0):
        return _two_dimensional(x, kernel, stride, padding)
    i, j = (int(k > 1) for k in kernel.shape[:2])
    y = _two_dimensional(x, kernel, stride, (i, j))
    return y[:, i : y.shape[1] - i, j : y.shape[2] - j]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_gradients(
    x: jax.Array, kernel: jax.Array, stride: Size2, padding: Size2
) -> jax.Array:
    """A 2D convolution with gradients that XLA for CPUs runs fast.

    Those that JAX derives have their axes in other orders, which XLA puts right in the
    main part of a program but not inside of a loop. There they take 3 times as long for
    the input, 6 where it is strided, and 20 to 150 times for the kernel.
    """
    return _with_margins(x, kernel, stride, padding)


def _with_gradients_backward(stride, padding, saved, gradient):
    x, kernel = saved
    of_x = _gradient_of_frames(x, kernel, stride, padding, gradient)
    return of_x, _gradient_of_kernel(x, kernel, stride, padding, gradient)


_with_gradients.defvjp(
    lambda x, kernel, *how: (_with_margins(x, kernel, *how), (x, kernel)),
    _with_gradients_backward,
)


def _gradient_of_frames(x, kernel, stride, padding, gradient):
    if stride != (1, 1):
        how = {"cells": True, "form": _with_gradients}
        _, transpose = jax.vjp(
            lambda x: _convolve_frames(x, kernel, stride, padding, **how), x
        )
        return transpose(gradient)[0]
    margins = tuple(k - 1 - p for k, p in zip(kernel.shape, padding, strict=False))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _with_margins(gradient, turned, (1, 1), margins)


def _gradient_of_kernel(x, kernel, stride, padding, gradient):
    """A matrix product for every tap."""
    x = jnp.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    spans = [(n - 1) * s + 1 for n, s in zip(gradient.shape[1:3], stride, strict=True)]
    # in this order, since the first factor is copied for a product: once for all
    taps = [
        jnp.einsum(
            "nhwd,nhwc->dc",
            gradient,
            x[:, i : i + spans[0] : stride[0], j : j + spans[1] : stride[1]],
        )
        for i, j in itertools.product(*map(range, kernel.shape[:2]))
    ]
    return jnp.stack(taps).swapaxes(1, 2).reshape(kernel.shape)


@functools.partial(jax.jit, static_argnums=2)
def depthwise(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
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

    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=strided(shifted_products),
        cuda=strided(fused),
        default=strided(native_depthwise),
    )


def native_depthwise(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """As XLA's convolution with a group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted_products(x: jax.Array, kernel: jax.Array, stride: Size3) -> jax.Array:
    """As the sum of shifted products that it stands for."""
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
    """As one kernel, for GPUs. The gradient of its input is the same kernel."""
    t, h, w = (-(-n // s) for n, s in zip(x.shape[1:4], stride, strict=True))
    return _correlate(x, kernel, (t, h, w), stride, (1, 1, 1))


def _fused_forward(x, kernel, stride):
    return fused(x, kernel, stride), (x, kernel)


def _fused_backward(stride, saved, gradient):
    x, kernel = saved
    flipped = kernel[::-1, ::-1, ::-1]
    of_x = _correlate(gradient, flipped, x.shape[1:4], (1, 1, 1), stride)
    # dead code where weights are constants, as in a synthesis
    _, transpose = jax.vjp(lambda k: native_depthwise(x, k, stride), kernel)
    return of_x, *transpose(gradient)


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
        for (j, a, of_rows), (k, o, of_columns) in itertools.product(
            met(row, 1), met(column, 2)
        ):
            offset = (j * w + k) * c + channel
            for i, real, of_frames in in_time:
                values = triton.load(
                    x_ref.at[video, jnp.where(real, i, 0), offset],
                    mask=inside & a & o & real,
                    other=0.0,
                ).astype(jnp.float32)
                for pairs in itertools.product(of_frames, of_rows, of_columns):
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
