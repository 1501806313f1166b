"""Convolutions of videos (b, t, h, w, c), in the form that each machine runs fast.

`native` is the definition, and what TPUs run. Elsewhere XLA's 3D convolutions are slow:
on a GPU it moves channels to the front and back around each of them, and a CPU takes up
to some hundred times as long for a gradient. So there `convolve` is a 2D convolution,
whose gradients are written out for CPUs. tests/kernels/test_convolutions.py holds each
form against its definition.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from leaps_jax.kernels import dispatch

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]


# jit, so that layers of one shape are traced once
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

    for_gpu = functools.partial(
        strided(_in_two_dimensions), multiple=8, form=_in_order_of_cudnn
    )
    run = dispatch.by_platform(
        strided(native), gpu=for_gpu, old_gpu=for_gpu, cpu=strided(_with_products)
    )
    return run(x, kernel)


def native(x: jax.Array, kernel: jax.Array, stride: Size3, padding: Size3) -> jax.Array:
    """XLA's 3D convolution."""
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
    """A 2D convolution; `options` are those of `_convolve_frames`."""
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _in_order_of_cudnn(
    x: jax.Array, kernel: jax.Array, stride: Size2, padding: Size2
) -> jax.Array:
    """A 2D convolution whose kernel, and that of its gradient, has outputs first.

    Left to itself, XLA puts the axes of one of them into that order in every step of a
    loop: some hundred small kernels of X3D-XS's. Here that is done before it.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel.transpose(3, 0, 1, 2),
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
    )


def _in_order_of_cudnn_backward(stride, padding, saved, gradient):
    x, kernel = saved
    if stride == (1, 1):
        dx = _in_order_of_cudnn(gradient, *_turned(kernel, padding))
    else:
        _, transpose = jax.vjp(
            lambda x: _two_dimensional(x, kernel, stride, padding), x
        )
        (dx,) = transpose(gradient)
    # dead code where weights are constants, as in a synthesis
    _, transpose = jax.vjp(lambda k: _two_dimensional(x, k, stride, padding), kernel)
    return dx, *transpose(gradient)


_in_order_of_cudnn.defvjp(
    lambda x, kernel, *how: (_in_order_of_cudnn(x, kernel, *how), (x, kernel)),
    _in_order_of_cudnn_backward,
)


def _turned(kernel: jax.Array, padding: Size2) -> tuple[jax.Array, Size2, Size2]:
    """Kernel, stride and padding of the gradient of a convolution of stride 1."""
    i, j = (k - 1 - p for k, p in zip(kernel.shape, padding, strict=False))
    return kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), (i, j)


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
    dx = _gradient_of_frames(x, kernel, stride, padding, gradient)
    return dx, _gradient_of_kernel(x, kernel, stride, padding, gradient)


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
    return _with_margins(gradient, *_turned(kernel, padding))


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
