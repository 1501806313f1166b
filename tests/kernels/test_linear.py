"""Two linear layers are what their product is."""

import jax
import numpy as np

from leaps_jax.kernels.linear import two_layers


def test_two_layers_by_the_product_of_their_matrices(request):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((2, 3, 5, 24), (24, 24), (24,), (24, 24), (24,))
    x, *matrices = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))

    def values():
        def run(x, a, b, c, d):
            return two_layers(x, (a, b), (c, d), None)

        y, transpose = jax.vjp(run, x, *matrices)
        return y, *transpose(y)

    plain = values()
    request.getfixturevalue("on_a_gpu")
    for a, b in zip(values(), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
