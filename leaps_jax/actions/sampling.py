"""Random numbers and colours of a scene."""

import jax
import jax.numpy as jnp


def draws(keys: jax.Array, size: int = 1) -> jax.Array:
    """(n, size) numbers in [0, 1), a row for each of n keys.

    Many small draws at once: XLA compiles each that stands alone as a loop of its own.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)


def between(low, high, unit: jax.Array) -> jax.Array:
    """Numbers in [low, high) from those in [0, 1)."""
    return low + (high - low) * unit


def colour(unit: jax.Array) -> jax.Array:
    """Colours (..., 3) in [0, 1], saturated or grey, dark or light, from draws."""
    hue, saturation, value = jnp.moveaxis(unit, -1, 0)
    value, saturation = 0.15 + 0.8 * value, 0.9 * saturation
    wheel = jnp.abs((hue[..., None] * 6 - jnp.array([0.0, 2.0, 4.0])) % 6 - 3) - 1
    tint = jnp.clip(wheel, 0, 1)
    return value[..., None] * (1 - saturation[..., None] * (1 - tint))
