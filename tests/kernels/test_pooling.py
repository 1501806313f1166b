"""The max pooling of a GPU is the one that defines it."""

import math

import checks
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import pooling

STEM = ((1, 3, 3), (1, 2, 2), (0, 1, 1))
POOLS = [
    STEM,
    ((1, 3, 2), (1, 1, 3), (0, 1, 0)),  # all windows overlap; none do
    ((1, 2, 5), (1, 3, 2), (0, 0, 2)),  # some rows are in no window
    ((2, 3, 3), (2, 2, 2), (0, 1, 1)),  # in time, too
]


def values(form, x, window, stride, padding):
    """What comes out, and its gradient by numbers whose sums are exact."""
    y, transpose = jax.vjp(lambda x: form(x, window, stride, padding), x)
    gradient = jax.random.randint(jax.random.key(1), y.shape, -8, 9)
    return y, *transpose(gradient.astype(y.dtype))


def known(x, window, stride, padding):
    return nn.max_pool(x, window, stride, [(p, p) for p in padding])


def assert_equal(x, pool):
    for a, b in zip(
        values(pooling.max_pool, x, *pool), values(known, x, *pool), strict=True
    ):
        assert a.dtype == b.dtype == x.dtype
        np.testing.assert_array_equal(*(np.asarray(of, np.float32) for of in (a, b)))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [(2, 3, 15, 13, 24), (1, 2, 8, 18, 64)])
def test_max_pool_of_a_gpu(on_a_gpu, shape, pool):
    distinct = jax.random.permutation(jax.random.key(0), math.prod(shape))
    assert_equal(distinct.reshape(shape) - jnp.float32(distinct.size / 2), pool)


@pytest.mark.parametrize("pool", POOLS[:3])
def test_the_first_of_equal_maxima_has_the_gradient(on_a_gpu, pool):
    x = jax.random.normal(jax.random.key(0), (2, 2, 11, 9, 3))
    assert_equal(nn.relu(x).astype(jnp.bfloat16), pool)  # of half of it, zeros


def test_of_a_window_of_zeros_one_has_the_gradient(on_a_gpu):
    def loss(x):
        return pooling.max_pool(x, (1, 2, 2), (1, 2, 2), (0, 0, 0)).sum()

    found = jax.grad(loss)(jnp.zeros((1, 1, 4, 6, 8)))
    expected = np.zeros((1, 1, 4, 6, 8))
    expected[:, :, ::2, ::2] = 1
    np.testing.assert_array_equal(found, expected)


def test_sums_of_gradients_are_in_float32(on_a_gpu):
    x = jnp.zeros((1, 1, 3, 3, 8), jnp.bfloat16).at[:, :, 1, 1].set(1)
    y, transpose = jax.vjp(lambda x: pooling.max_pool(x, *STEM), x)
    assert y.shape == (1, 1, 2, 2, 8)
    gradient = jnp.array([256.0, 1, 1, 2], y.dtype)
    (found,) = transpose(jnp.broadcast_to(gradient.reshape(1, 1, 2, 2, 1), y.shape))
    np.testing.assert_array_equal(found[0, 0, 1, 1].astype(np.float32), 260)


def test_what_is_no_number_stays_so(on_a_gpu):
    x = jax.random.normal(jax.random.key(0), (1, 1, 9, 9, 8))
    x = x.at[0, 0, 3, 4, 5].set(jnp.nan)
    y = pooling.max_pool(x, *STEM)
    assert np.isnan(y).sum() == 2
    np.testing.assert_array_equal(y, known(x, *STEM))


def test_a_gpu_notes_where_maxima_are_and_others_do_not():
    x = jax.ShapeDtypeStruct((8, 8, 112, 112, 64), jnp.bfloat16)

    def loss(x):
        return pooling.max_pool(x, *STEM).astype(jnp.float32).sum()

    on_gpu = checks.lowered_for_a_gpu(jax.grad(loss), x)
    assert "8x8x56x56x64xi8" in on_gpu and "select_and_scatter" not in on_gpu
    traced = jax.jit(jax.grad(loss)).trace(x)
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "select_and_scatter" in on_cpu
