"""Random changes of one video between optimisation steps: `(key, video) -> video`.

They act on a single (t, h, w, c) video with a key of its own; `jax.vmap` makes each
video of a batch move by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from leaps_jax.models.generations import kernel_or

Transform = Callable[[jax.Array, jax.Array], jax.Array]


def roll(pixels: int) -> Transform:
    """Rolls height and width by up to `pixels` in either direction."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
        return _rolled(video, shift)

    return transform


@jax.custom_vjp
def _rolled(video: jax.Array, shift: jax.Array) -> jax.Array:
    """`jnp.roll` along height and width; its gradient is a roll and no scatter."""

    def plain(video: jax.Array, shift: jax.Array) -> jax.Array:
        return jnp.roll(video, shift, (1, 2))

    form = kernel_or(plain, kernel=_rolled_by_kernel)
    return jax.lax.platform_dependent(video, shift, cuda=form, default=plain)


_rolled.defvjp(
    lambda video, shift: (_rolled(video, shift), shift),
    lambda shift, gradient: (_rolled(gradient, -shift), None),
)

_ELEMENTS = 1024  # of a row, of one program


def _rolled_by_kernel(video: jax.Array, shift: jax.Array) -> jax.Array:
    """As one copy: XLA gathers a pixel again for everything that looks at it."""
    t, h, w, c = video.shape
    row = w * c

    def modulo(number: jax.Array, of: int) -> jax.Array:
        return jax.lax.rem(jax.lax.rem(number, of) + of, of)

    def copy(video_ref, shift_ref, rolled_ref):
        frame, line = pl.program_id(0), pl.program_id(1)
        element = pl.program_id(2) * _ELEMENTS + jnp.arange(_ELEMENTS)
        from_line = modulo(line - shift_ref[0], h)
        from_element = modulo(element - shift_ref[1] * c, row)
        inside = element < row
        values = triton.load(
            video_ref.at[frame, from_line, from_element], mask=inside, other=0.0
        )
        triton.store(rolled_ref.at[frame, line, element], values, mask=inside)

    rolled = pl.pallas_call(
        copy,
        grid=(t, h, -(-row // _ELEMENTS)),
        out_shape=jax.ShapeDtypeStruct((t, h, row), video.dtype),
        compiler_params=triton.CompilerParams(num_warps=4),
        name="roll",
    )(video.reshape(t, h, row), shift)
    return rolled.reshape(video.shape)


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
