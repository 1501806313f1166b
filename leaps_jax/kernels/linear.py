"""Linear layers, one after the other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from leaps_jax.kernels import dispatch

#: A kernel (c, d) and a bias (d,).
Linear = tuple[jax.Array, jax.Array]


def two_layers(
    x: jax.Array, first: Linear, second: Linear, dtype: jnp.dtype | None
) -> jax.Array:
    """Two linear layers of (..., c) with nothing between them.

    On a GPU they are one, the product of both kernels, which a synthesis computes once.
    tests/kernels/test_linear.py holds it against two.
    """

    def layer(x: jax.Array, linear: Linear) -> jax.Array:
        x, kernel, bias = nn.dtypes.promote_dtype(x, *linear, dtype=dtype)
        return x @ kernel + bias

    def plain(x: jax.Array, first: Linear, second: Linear) -> jax.Array:
        return layer(layer(x, first), second)

    def folded(x: jax.Array, first: Linear, second: Linear) -> jax.Array:
        product = functools.partial(jnp.matmul, precision="highest")
        kernel = product(first[0], second[0])
        return layer(x, (kernel, product(first[1], second[0]) + second[1]))

    run = dispatch.by_platform(plain, gpu=folded, old_gpu=folded)
    return run(x, first, second)
