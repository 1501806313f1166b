"""The distances of a GPU are those that define them."""

import itertools

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leaps_jax.kernels import frame_distances


def test_distances_are_those_of_all_pairs():
    z = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    pairs = sorted(itertools.combinations(range(5), 2), key=lambda p: p[1] - p[0])
    expected = [np.abs(z[:, s] - z[:, t]).mean((1, 2)) for s, t in pairs]
    found = frame_distances.frame_distances(z)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-6)


def test_one_frame_has_no_distances():
    assert frame_distances.frame_distances(jnp.ones((2, 1, 3))).shape == (2, 0)


SHAPES = [
    (2, 2, 5, 7),
    (2, 3, 2, 1024),  # as many as two programs take
    (1, 8, 4, 1, 300),
    (2, 16, 6, 24),
    (1, 17, 10),  # too many for a kernel
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_distances_of_a_gpu(on_a_gpu, shape, dtype):
    keys = jax.random.split(jax.random.key(0))
    # few values, so that many are equal
    z = (jax.random.randint(keys[0], shape, -9, 9) / 4).astype(dtype)
    pairs = shape[1] * (shape[1] - 1) // 2
    gradient = jax.random.normal(keys[1], (shape[0], pairs))

    @jax.jit
    def values(z, gradient):
        forms = frame_distances.frame_distances, frame_distances.plain
        found = [jax.vjp(form, z) for form in forms]
        return [(y, *transpose(gradient)) for y, transpose in found]

    for a, b in zip(*values(z, gradient), strict=True):
        assert a.dtype == b.dtype
        a, b = np.float32(a), np.float32(b)
        digits = jnp.finfo(dtype).eps * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=digits)


def test_distances_are_a_kernel_of_a_gpu_and_so_is_their_gradient():
    z = jax.ShapeDtypeStruct((32, 8, 196, 768), jnp.bfloat16)

    def loss(z):
        return jnp.square(frame_distances.frame_distances(z)).sum()

    text = checks.lowered_for_a_gpu(jax.grad(loss), z)
    assert "frame_distances_gradient" in text
