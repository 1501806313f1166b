"""Random changes of one video before a network sees it: `(key, video) -> video`.

They act on a single video (t, h, w, c) of pixels in [0, 1] with a key of its own;
`jax.vmap` makes each video of a batch move by itself. A synthesis draws them anew at
every step, so that only what survives them is worth making.

>>> transform = chain(view(scale=0.25, shift=0.12), noise(0.08), tint(0.05))
>>> transform(jax.random.key(0), jnp.zeros((4, 32, 32, 3))).shape
(4, 32, 32, 3)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

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
    return jnp.roll(video, shift, (1, 2))


_rolled.defvjp(
    lambda video, shift: (_rolled(video, shift), shift),
    lambda shift, gradient: (_rolled(gradient, -shift), None),
)


def view(
    scale: float = 0.0, shift: float = 0.0, tempo: float = 0.0, delay: float = 0.0
) -> Transform:
    """Looks at the video from nearer or farther, beside it, sooner, faster or slower.

    All frames are seen alike, and all changes are one linear resampling. What lies
    beyond the picture is grey; before its first and after its last frame a video
    stands still.

    Args:
      scale: pictures are enlarged by e^-scale to e^scale.
      shift: largest shift along height and width, as a share of them.
      tempo: time is stretched by e^-tempo to e^tempo.
      delay: largest shift in time, as a share of the frames.
    """

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        t, h, w, _ = video.shape
        draw = jax.random.uniform(key, (5,), minval=-1.0)
        zoom = jnp.exp(scale * draw[0])
        rows = _resampling(h, zoom, shift * draw[1])
        columns = _resampling(w, zoom, shift * draw[2])
        video = jnp.einsum("ph,qw,thwc->tpqc", rows, columns, video - _GREY) + _GREY
        if tempo or delay:
            stretch = jnp.exp(tempo * draw[3])
            steps = _resampling(t, stretch, delay * draw[4], still=True)
            video = jnp.einsum("st,thwc->shwc", steps, video)
        return video

    return transform


_GREY = 0.45  # the mean of pixels in Kinetics


def _resampling(
    n: int, zoom: jax.Array, shift: jax.Array, still: bool = False
) -> jax.Array:
    """Linear interpolation along an axis as a matrix (to, from).

    Args:
      n: samples of the axis.
      zoom: about its middle.
      shift: as a share of the axis.
      still: repeat the first and the last sample beyond them.
    """
    middle = (n - 1) / 2
    at = (jnp.arange(n) - middle - shift * n) / zoom + middle
    if still:
        at = jnp.clip(at, 0, n - 1)
    return jax.nn.relu(1 - jnp.abs(at[:, None] - jnp.arange(n)))


def noise(strength: float) -> Transform:
    """Adds noise of this standard deviation to every pixel."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        return video + strength * jax.random.normal(key, video.shape, video.dtype)

    return transform


def tint(strength: float) -> Transform:
    """Adds one colour to all pixels, of this standard deviation in each channel."""

    def transform(key: jax.Array, video: jax.Array) -> jax.Array:
        return video + strength * jax.random.normal(key, video.shape[-1:], video.dtype)

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
