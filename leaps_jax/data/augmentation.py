"""Random changes of the clips that a model is trained on, drawn on the device."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How much a clip is changed.

    Attributes:
      smallest_crop: side of the smallest random crop, as a share of the short side.
      colour: strength of the random changes of brightness, contrast and tint.
      flip: mirror half of the clips.
    """

    smallest_crop: float
    colour: float
    flip: bool


def random_view(
    key: jax.Array,
    video: jax.Array,
    extent: jax.Array,
    size: int,
    augmentation: Augmentation,
) -> jax.Array:
    """One augmented clip: the same random crop and colours for all of its frames.

    Args:
      key: of this clip at this step.
      video: (t, h, w, 3) uint8; the picture fills the top-left `extent`.
      extent: (2,) height and width of the picture.
      size: of the result.
      augmentation: strengths.

    Returns:
      (t, size, size, 3) float32 pixels in [0, 1].
    """
    keys = jax.random.split(key, 6)
    short = extent.min().astype(jnp.float32)
    side = short * jax.random.uniform(
        keys[0], minval=augmentation.smallest_crop, maxval=1.0
    )
    aspect = jnp.exp(0.15 * jax.random.uniform(keys[1], minval=-1.0))
    box = jnp.minimum(side * jnp.stack([aspect, 1 / aspect]), extent)
    corner = jax.random.uniform(keys[2], (2,)) * (extent - box)
    scale = size / box
    pixels = video.astype(jnp.float32) / 255
    view = jax.image.scale_and_translate(
        pixels,
        (pixels.shape[0], size, size, 3),
        (1, 2),
        scale,
        -corner * scale,
        method="linear",
    )
    contrast = 1 + augmentation.colour * jax.random.uniform(keys[3], minval=-1.0)
    tint = jax.random.uniform(keys[4], (3,), minval=-1.0) / 2
    brightness = jax.random.uniform(keys[5], minval=-1.0) / 2
    mean = view.mean()
    view = (
        (view - mean) * contrast + mean + augmentation.colour * (brightness + tint) / 2
    )
    if augmentation.flip:
        mirrored = jax.random.bernoulli(jax.random.fold_in(key, 6))
        view = jnp.where(mirrored, view[:, :, ::-1], view)
    return jnp.clip(view, 0, 1)
