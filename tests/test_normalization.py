"""The layer norm of a GPU is the one that defines it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.models import normalization


@pytest.mark.parametrize("shape", [(2, 5, 24), (3, 7, 5, 96), (3, 1536)])
def test_layer_norm_of_a_gpu(on_a_gpu, shape):
    keys = jax.random.split(jax.random.key(0), 4)
    # far from zero, as what enters late norms is
    x = 10 + jax.random.normal(keys[0], shape)
    scale, bias, gradient = (
        jax.random.normal(key, shape[-n:])
        for key, n in zip(keys[1:], (1, 1, 9), strict=True)
    )

    def values(form):
        y, transpose = jax.vjp(lambda *of: form(*of, 1e-6), x, scale, bias)
        return y, *transpose(gradient)

    forms = normalization.layer_norm, normalization.plain
    for a, b in zip(*map(values, forms), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_layer_norm_is_a_kernel_of_a_gpu_and_so_is_its_gradient():
    x = jax.ShapeDtypeStruct((2, 5, 768), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((768,), jnp.float32)

    def loss(x, scale, bias):
        y = normalization.layer_norm(x, scale, bias, 1e-6)
        return y.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss)).trace(x, vector, vector)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "layer_norm_gradient" in text
