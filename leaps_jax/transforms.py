"""Random changes of one video between optimisation steps: `(key, video) -> video`.

They act on a single (t, h, w, c) video with a key of its own; `jax.vmap` makes each
video of a batch move by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Transform = Callable[[jax.Array, jax.Array], jax.Array]


def roll(pixels: int) -> Transform:
    """Rolls height and width by up to `pixels` in either direction."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
        return jnp.roll(video, shift, axis=(1, 2))

    return transform


def temporal_roll(frames: int) -> Transform:
    """Rolls time by up to `frames` in either direction."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        return jnp.roll(video, jax.random.randint(key, (), -frames, frames + 1), axis=0)

    return transform


def flip() -> Transform:
    """Mirrors half of the videos; not for classes that a mirror changes."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), video[:, :, ::-1], video)

    return transform


def chain(*transforms: Transform) -> Transform:
    """Applies transforms in order, each with a key of its own."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        for number, t in enumerate(transforms):
            video = t(jax.random.fold_in(key, number), video)
        return video

    return transform
