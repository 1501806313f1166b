"""Norms of a GPU are those that define them, with moments of what enters them."""

import checks
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import normalization
from leaps_jax.taps import Tap


def drawn(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(form, plain, of, gradients):
    """Values, and what becomes of gradients of them."""

    def values(form):
        found, transpose = jax.vjp(form, *of)
        return jax.tree.leaves((found, transpose(gradients)))

    for a, b in zip(values(form), values(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.fixture
def few_programs(on_a_gpu, monkeypatch):
    """Each activation takes several turns, and the last one fewer."""
    monkeypatch.setattr(normalization, "_PROGRAMS", 8)


# one turn, several of one program, several of each
@pytest.mark.parametrize(
    "shape", [(2, 5, 24), (3, 7, 5, 96), (3, 4, 1536), (2, 43, 768)]
)
@pytest.mark.parametrize("some", [False, True])
def test_layer_norm_of_a_gpu(few_programs, shape, some):
    # far from zero, as what enters late norms is
    of = 10 + drawn(0, *shape), drawn(1, shape[-1]), drawn(2, shape[-1])
    mask = np.random.default_rng(0).random(shape[1:-1]) > 0.5 if some else None
    gradients = drawn(5, *shape), drawn(3, *shape), drawn(4, shape[0], shape[-1])

    def form(*of):
        return normalization.layer_norm(*of, 1e-6, mask)

    def plain(x, scale, bias):
        axes = tuple(range(1, x.ndim - 1))
        where = None if mask is None else mask[..., None]
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        return x, y * scale + bias, x.mean(axes, where=where)

    assert_same(form, plain, of, gradients)
    assert_same(lambda *of: form(*of)[1], lambda *of: plain(*of)[1], of, gradients[1])


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 5, 5, 24), (1, 4, 40, 40, 56), (3, 1, 2, 2, 216), (2, 3, 8, 8, 64)],
)
@pytest.mark.parametrize("activation", [nn.relu, nn.swish, normalization.identity])
@pytest.mark.parametrize("adds", [False, True])
def test_batch_norm_of_a_gpu(few_programs, shape, activation, adds):
    x, residual = 3 + drawn(0, *shape), drawn(1, *shape) if adds else None
    of = x, *(drawn(seed, shape[-1]) for seed in (2, 3, 4))
    gradients = drawn(5, *shape), *(drawn(s, shape[0], shape[-1]) for s in (6, 7))

    def form(x, factor, offset, centre, residual):
        return normalization.batch_norm(x, factor, offset, centre, activation, residual)

    def plain(x, factor, offset, centre, residual):
        y = x * factor + offset
        y = activation(y if residual is None else y + residual)
        axes = (1, 2, 3)
        return y, (x - centre).mean(axes), jnp.square(x - centre).mean(axes)

    assert_same(form, plain, (*of, residual), gradients)


def test_a_tap_knows_its_moments_about_any_value():
    value, centre, about = 2 + drawn(0, 3, 4, 5, 5, 6), drawn(1, 6), drawn(2, 6)
    centred = value - centre
    known = centre, centred.mean((1, 2, 3)), jnp.square(centred).mean((1, 2, 3))
    tap = Tap("norm", value)
    told = Tap("norm", jnp.zeros_like(value), known=known)  # it need not look
    np.testing.assert_allclose(told.mean(), tap.mean(), rtol=1e-5, atol=1e-5)
    for a, b in zip(told.moments(about), tap.moments(about), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    told = Tap("norm", value, known=known[:2])
    for a, b in zip(told.moments(about), tap.moments(about), strict=True):
        np.testing.assert_array_equal(a, b)


def test_norms_are_kernels_of_a_gpu_and_so_is_the_gradient_of_one():
    x = jax.ShapeDtypeStruct((2, 8, 14, 14, 768), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((768,), jnp.float32)

    def lowered(norm, *of):
        def loss(*of):
            return sum(y.astype(jnp.float32).sum() for y in norm(*of))

        return checks.lowered_for_a_gpu(jax.value_and_grad(loss), *of)

    def layer_norm(*of):
        return normalization.layer_norm(*of, 1e-6)

    assert "layer_norm_gradient" in lowered(layer_norm, x, vector, vector)
    for activation in (nn.relu, nn.swish, normalization.identity):

        def batch_norm(*of, activation=activation):
            *of, residual = of
            return normalization.batch_norm(*of, activation, residual)

        assert "batch_norm" in lowered(batch_norm, x, vector, vector, vector, x)
