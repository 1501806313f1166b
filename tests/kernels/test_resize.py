"""Sums of neighbours resize as products do."""

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import resize


@pytest.mark.parametrize("size", [(4, 5), (9, 20), (12, 13), (13, 7), (30, 31)])
def test_neighbours_give_what_products_give(on_a_gpu, size):
    video = jax.random.normal(jax.random.key(0), (2, 3, 12, 13, 3))

    def values(form):
        y, transpose = jax.vjp(form, video)
        return y, *transpose(jax.random.normal(jax.random.key(1), y.shape))

    def by_products(video):
        shape = (2, 3, *size, 3)
        return jax.image.resize(video, shape, "linear", precision="highest")

    found = values(lambda video: resize.resize(video, size))
    for a, b in zip(found, values(by_products), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "few"), [(12, True), (24, True), (80, False)])
def test_a_gpu_adds_few_neighbours_up_and_others_multiply(before, few):
    video = jax.ShapeDtypeStruct((1, 2, before, before, 3), jnp.float32)

    def loss(video):
        return jnp.square(resize.resize(video, (8, 8))).sum()

    on_gpu = checks.lowered_for_a_gpu(jax.grad(loss), video)
    assert ("gather" in on_gpu) == few and ("dot_general" in on_gpu) != few
    traced = jax.jit(jax.grad(loss)).trace(video)
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "dot_general" in on_cpu and "gather" not in on_cpu
