"""Random numbers and colours of a scene."""

import jax
import jax.numpy as jnp


def uniform(key, low, high, shape=()) -> jax.Array:
    """Numbers in [low, high)."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def colour(key, shape) -> jax.Array:
    """Colours (*shape, 3) in [0, 1]: saturated or grey, dark or light."""
    hue, saturation, value = jnp.moveaxis(jax.random.uniform(key, (*shape, 3)), -1, 0)
    value, saturation = 0.15 + 0.8 * value, 0.9 * saturation
    wheel = jnp.abs((hue[..., None] * 6 - jnp.array([0.0, 2.0, 4.0])) % 6 - 3) - 1
    tint = jnp.clip(wheel, 0, 1)
    return value[..., None] * (1 - saturation[..., None] * (1 - tint))
