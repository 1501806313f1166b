"""Every form of attention is the one that defines it."""

import functools

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import attention


def drawn(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture
def cudnn(on_a_gpu):
    def form(q, k, v, factored_bias):
        return attention._attend_by_cudnn(q, k, v, factored_bias, k.shape[-3])

    return form


def check_same(form, q, k, v, *more, want=attention.products):
    """Equal values and gradients."""
    assert_same(form, want, (q, k, v), more, drawn(9, *q.shape[:-1], v.shape[-1]))


def assert_same(form, want, of, more, gradient):
    @functools.partial(jax.jit, static_argnums=0)
    def values(form):
        y, transpose = jax.vjp(lambda *of: form(*of, *more), *of)
        return y, *transpose(gradient)

    for a, b in zip(values(form), values(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("leading", "queries", "keys", "width"),
    [
        ((2,), 6, 6, 8),
        ((2,), 7, 7, 8),
        ((2, 3), 1, 10, 12),
        ((2,), 8, 5, 12),
    ],
)
def test_lengths_and_channels_are_filled_up(cudnn, leading, queries, keys, width):
    q = drawn(0, *leading, queries, 2, width)
    k, v = (drawn(seed, *leading, keys, 2, width) for seed in (1, 2))
    check_same(functools.partial(cudnn, factored_bias=None), q, k, v)


@pytest.mark.parametrize(("times", "places"), [(8, 4), (3, 5)])
def test_over_time(on_a_gpu, times, places):
    qkv = drawn(0, 2, times, places, 3, 2, 16)

    def by_place(qkv):
        q, k, v = (qkv[:, :, :, part].swapaxes(1, 2) for part in range(3))
        return attention.products(q, k, v).swapaxes(1, 2)

    gradient = drawn(9, 2, times, places, 2, 16)
    assert_same(attention.attend_over_time, by_place, (qkv,), (), gradient)


def test_attention_over_time_is_a_kernel_of_a_gpu():
    x = jax.ShapeDtypeStruct((2, 8, 5, 3, 2, 64), jnp.bfloat16)

    def loss(x):
        return attention.attend_over_time(x).astype(jnp.float32).sum()

    assert "triton" in checks.lowered_for_a_gpu(jax.grad(loss), x)


def test_a_factored_bias(cudnn):
    q, k, v = (drawn(seed, 2, 3, 6, 2, 8) for seed in range(3))
    owners = np.eye(4)[np.random.default_rng(0).integers(4, size=6)]
    factored_bias = drawn(4, 2, 3, 6, 2, 4), owners  # as MViT's relative positions
    defined = functools.partial(attention.products, bias=None)
    check_same(
        functools.partial(cudnn, factored_bias=factored_bias),
        q,
        k,
        v,
        want=functools.partial(defined, factored_bias=factored_bias),
    )


def test_expand_bias_adds_the_value_of_the_property():
    values, of_keys = drawn(0, 5, 2, 4), np.array([1, 0, 3])
    scores = attention.expand_bias(values, np.eye(4)[of_keys])
    want = np.moveaxis(np.asarray(values)[:, :, of_keys], 1, 0)
    np.testing.assert_allclose(scores, want, rtol=1e-6)
