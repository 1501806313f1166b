"""Parametrizations: what the optimiser changes, and how it becomes a video.

A parametrization is a pair of pure functions for one video: `init` draws parameters,
`decode` turns them into pixels. The engine optimises the parameters; a video is only
ever decoded from them. Weight decay pulls them to zero: let that be the plainest video,
or set `Config(weight_decay=0)`. Yours is a few lines:

>>> def init(key, spec, start=None):  # one picture for all frames
...     return 0.01 * jax.random.normal(key, (spec.size, spec.size, 3))
>>> def decode(parameters, spec):
...     picture = jax.nn.sigmoid(parameters)
...     return jnp.broadcast_to(picture, (spec.frames, *picture.shape))
>>> still = Parametrization("still", init, decode)
>>> result = synthesize(..., parametrization=still)              # doctest: +SKIP
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import video as video_lib
from leaps_jax.config import Config
from leaps_jax.errors import UserError, check_known
from leaps_jax.model import ModelSpec


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """How the videos of a synthesis are represented.

    Attributes:
      name: for records and errors.
      init: `(key, spec, start) -> parameters` of one video, any tree of real arrays.
        They decode to `start`, a clip (t, h, w, 3) of pixels in [0, 1], or to noise
        where that is None.
      decode: `(parameters, spec) -> pixels (t, h, w, 3)` in [0, 1], differentiable.
      project: `(parameters, spec) -> parameters`, after every step; back to where
        they mean a video that can be displayed. Nothing by default.
    """

    name: str
    init: Callable[[jax.Array, ModelSpec, jax.Array | None], Any]
    decode: Callable[[Any, ModelSpec], jax.Array]
    project: Callable[[Any, ModelSpec], Any] = lambda parameters, spec: parameters


@functools.cache
def pixels(noise: float = 1.0) -> Parametrization:
    """The pixels themselves, normalised as the model sees them and clipped to [0, 1].

    Args:
      noise: standard deviation of the noise to start from, in normalised units.
    """

    def init(key: jax.Array, spec: ModelSpec, start: jax.Array | None = None):
        if start is not None:
            return project(video_lib.normalize(start, spec), spec)
        shape = (spec.frames, spec.size, spec.size, 3)
        return project(noise * jax.random.normal(key, shape), spec)

    def decode(parameters: jax.Array, spec: ModelSpec) -> jax.Array:
        return video_lib.denormalize(parameters, spec)

    def project(parameters: jax.Array, spec: ModelSpec) -> jax.Array:
        return video_lib.clip_to_pixels(parameters, spec)

    return Parametrization("pixels", init, decode, project)


#: Square root of the covariance of RGB colours in ImageNet, from Lucid
#: (lucid/optvis/param/color.py, Apache-2.0): rows are R, G and B; columns are
#: brightness and two contrasts, uncorrelated in natural pictures.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))

_GREY = 0.45  # the mean of pixels in Kinetics, where the spectrum is zero
_CONTRAST = 4.0  # of logits of pixels to colours of unit variance
_EDGE = 1e-2  # pixels of a clip keep this far from 0 and 1, of infinite logits


@functools.cache
def fourier(
    noise: float = 0.01, spatial_decay: float = 1.0, temporal_decay: float = 0.0
) -> Parametrization:
    """The spectrum of the video over time, height and width.

    pixels = sigmoid(4 · C · irfftn(scale · z) + logit(0.45)), with z the complex
    spectrum, C `COLOURS`, and scale ∝ f^-spatial_decay · max(1, T·f_t)^-temporal_decay:
    f is the length of the frequency (f_t, f_h, f_w) in cycles a frame and cycles a
    pixel, at least 1 / max(T, W) for T frames of W pixels. Steps of one size in z thus
    change slow and large things more than flicker and fine texture, as in natural
    video. The same idea for pictures: C. Olah et al., "Feature Visualization", Distill
    2017, and A. Mordvintsev et al., "Differentiable Image Parameterizations", Distill
    2018.

    Args:
      noise: standard deviation of z at the start.
      spatial_decay: larger for smoother and larger shapes.
      temporal_decay: larger for slower videos, negative for faster ones.
    """

    def init(key: jax.Array, spec: ModelSpec, start: jax.Array | None = None):
        shape = (2, 3, *_half_spectrum(spec))
        if start is None:
            return noise * jax.random.normal(key, shape)
        clear = jnp.clip(start, _EDGE, 1 - _EDGE)
        logits = jax.scipy.special.logit(clear) - _logit(_GREY)
        colours = jnp.einsum("cd,thwd->cthw", np.linalg.inv(COLOURS), logits)
        z = jnp.fft.rfftn(colours / _CONTRAST, axes=(1, 2, 3)) / scale(spec)
        return jnp.stack([z.real, z.imag])

    def decode(parameters: jax.Array, spec: ModelSpec) -> jax.Array:
        z = jax.lax.complex(*parameters) * scale(spec)
        shape = (spec.frames, spec.size, spec.size)
        x = jnp.fft.irfftn(z, shape, axes=(1, 2, 3))
        logits = _CONTRAST * jnp.einsum("dc,cthw->thwd", jnp.array(COLOURS), x)
        return jax.nn.sigmoid(logits + _logit(_GREY))

    def scale(spec: ModelSpec) -> jax.Array:
        t, size = spec.frames, spec.size
        over_time = jnp.abs(jnp.fft.fftfreq(t))[:, None, None]
        over_height = jnp.fft.fftfreq(size)[:, None]
        over_width = jnp.fft.rfftfreq(size)
        square = over_time**2 + over_height**2 + over_width**2
        f = jnp.maximum(jnp.sqrt(square), 1 / max(t, size))
        scale = f**-spatial_decay * jnp.maximum(1, t * over_time) ** -temporal_decay
        unit = jnp.sqrt(jnp.square(scale).mean())
        return scale / unit * (t * size * size) ** 0.5  # irfftn divides by all

    return Parametrization("fourier", init, decode)


def _half_spectrum(spec: ModelSpec) -> tuple[int, int, int]:
    """The half of a real video's spectrum that is stored; the other is its mirror."""
    return spec.frames, spec.size, spec.size // 2 + 1


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


#: By name, from the settings of a run.
PARAMETRIZATIONS: dict[str, Callable[[Config], Parametrization]] = {
    "fourier": lambda config: fourier(
        config.noise, config.spatial_decay, config.temporal_decay
    ),
    "pixels": lambda config: pixels(config.noise),
}


def from_config(config: Config) -> Parametrization:
    """The parametrization that the settings name.

    Raises:
      UserError: there is none of that name, or a setting is for another one.
    """
    name = config.parametrization
    check_known("parametrization", name, PARAMETRIZATIONS)
    chosen = PARAMETRIZATIONS[name](config)
    check(chosen, config)
    return chosen


def check(parametrization: Parametrization, config: Config) -> None:
    """Raises UserError where a setting is for another parametrization."""
    for field in ("blur", "temporal_blur"):
        value = getattr(config, field)
        if value and parametrization.name != "pixels":
            raise UserError(
                f"{field}={value}: smooths gradients of pixels; take --parametrization"
                " pixels, or raise spatial_decay or temporal_decay"
            )
