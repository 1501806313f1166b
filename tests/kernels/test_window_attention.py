"""Attention in place is what rolling, cutting and putting together gives."""

import functools

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import window_attention


def drawn(size, window, width, dtype=jnp.float32):
    """Queries, keys, values, a bias, and a gradient of what they give."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, gradient = (
        jax.random.normal(key, (2, *size, 2, width), dtype) for key in keys[:4]
    )
    n = np.prod(window)
    return q, k, v, jax.random.normal(keys[4], (2, n, n)), gradient


def with_gradients(form, *of):
    @jax.jit
    def values(q, k, v, bias, gradient):
        y, transpose = jax.vjp(form, q, k, v, bias)
        return y, *transpose(gradient)

    return values(*of)


@pytest.mark.parametrize(
    ("size", "window", "shift", "width"),
    [
        ((4, 6, 9), (2, 3, 3), (1, 1, 2), 16),
        ((4, 3, 6), (2, 3, 3), (1, 0, 1), 16),  # one window in height
        ((2, 12, 10), (2, 6, 10), (0, 0, 0), 32),  # more tokens than one program's
        ((2, 12, 10), (2, 6, 10), (0, 3, 0), 32),
    ],
)
def test_in_place_is_the_definition(on_a_gpu, size, window, shift, width):
    of = drawn(size, window, width)
    form, want = (
        with_gradients(functools.partial(form, window=window, shift=shift), *of)
        for form in (window_attention.attend, window_attention._by_definition)
    )
    for a, b in zip(form, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_far_scores_do_not_overflow(on_a_gpu):
    q, k, v, bias, gradient = drawn((2, 12, 10), (2, 6, 10), 16)
    bias = 300 * bias
    form, want = (
        with_gradients(
            functools.partial(form, window=(2, 6, 10), shift=(0, 3, 0)),
            *(10 * q, k, v, bias, gradient),
        )
        for form in (window_attention.attend, window_attention._by_definition)
    )
    for a, b in zip(form, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "width", "in_place"),
    [(jnp.bfloat16, 32, True), (jnp.float32, 32, False), (jnp.bfloat16, 24, False)],
)
def test_kernels_of_a_gpu_are_for_half_precision_and_powers_of_two(
    dtype, width, in_place
):
    *of, _ = drawn((4, 6, 6), (2, 3, 3), width, dtype)
    of = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in of]

    def loss(*of):
        y = window_attention.attend(*of, (2, 3, 3), (1, 1, 1))
        return y.astype(jnp.float32).sum()

    text = checks.lowered_for_a_gpu(jax.grad(loss), *of)
    assert ("triton" in text) == in_place
