"""The place of a scene: wall, floor, shadow, and things in the way."""

import jax
import jax.numpy as jnp

from leaps_jax.actions import motions
from leaps_jax.actions.camera import Camera, pan_at, project, project_level, rotated
from leaps_jax.actions.capsules import Capsules, joined, single
from leaps_jax.actions.sampling import between, colour, draws
from leaps_jax.actions.skeleton import JOINTS

TEXTURE = 64  # texels along a side of the background


def background(key: jax.Array, camera: Camera, time: jax.Array, pixels: jax.Array):
    """A wall above a floor, each with its own colour, gradient and 1/f texture.

    Args:
      key: of the place.
      camera: it sees through.
      time: (t,).
      pixels: (h, w, 2) positions on the screen in frame heights from the middle.

    Returns:
      (t, h, w, 3).
    """
    keys = jax.random.split(key, 6)
    zoom = (1 + camera.zoom_speed * time)[:, None, None, None]
    moved = pixels - pan_at(camera, time)[:, None, None]
    place = jax.vmap(lambda p, t: rotated(camera, p, t, -1.0))(moved, time) / zoom
    texture, unit = _one_over_f(keys[0]), draws(keys, 12)
    far = -between(1.5, 4.0, unit[1, 0])
    corner, _ = project_level(camera, jnp.array([0.0, 0.0, 1.0]) * far)
    below = place[..., 1:] - corner[1]
    is_floor = jnp.clip(below * 60 + 0.5, 0, 1)
    # the floor's texture shrinks with distance, as a plane's does
    depth = 1 / (0.12 + jnp.maximum(below, 0.0))
    spot = jnp.where(
        is_floor > 0.5,
        jnp.concatenate([place[..., :1] * depth, depth], -1) * 0.5,
        place,
    )
    colours = colour(unit[2].reshape(4, 3))
    grey = colours.mean(-1, keepdims=True)
    colours = grey + (colours - grey) * unit[5, 0]
    shade = between(-0.3, 0.3, unit[3, :2])
    strength = between(0.05, 0.6, unit[4, :2])
    value = _sampled(texture, spot * TEXTURE)

    def surface(i, ramp):
        mix = jnp.clip(0.5 + 0.5 * strength[i] * value, 0, 1)
        return colours[2 * i] * mix + colours[2 * i + 1] * (1 - mix) + shade[i] * ramp

    wall = surface(0, place[..., :1] + place[..., 1:])
    return wall * (1 - is_floor) + surface(1, place[..., 1:]) * is_floor


def _one_over_f(key: jax.Array) -> jax.Array:
    """(TEXTURE, TEXTURE, 1) periodic noise of amplitude 1/f and unit variance."""
    white = jax.random.normal(key, (TEXTURE, TEXTURE))
    frequency = jnp.hypot(
        jnp.fft.fftfreq(TEXTURE)[:, None], jnp.fft.rfftfreq(TEXTURE)[None]
    )
    spectrum = jnp.fft.rfft2(white) / jnp.maximum(frequency, 1 / TEXTURE)
    noise = jnp.fft.irfft2(spectrum.at[0, 0].set(0.0))
    return (noise / noise.std())[..., None]


def _sampled(texture: jax.Array, place: jax.Array) -> jax.Array:
    """The texture, which repeats, at (..., 2) texels, bilinear."""
    low = jnp.floor(place)
    part = place - low
    x, y = jnp.moveaxis(low.astype(jnp.int32), -1, 0)
    value = jnp.zeros((*place.shape[:-1], 1))
    for dx in (0, 1):
        for dy in (0, 1):
            weight = jnp.abs(1 - dx - part[..., 0]) * jnp.abs(1 - dy - part[..., 1])
            texel = texture[(y + dy) % TEXTURE, (x + dx) % TEXTURE]
            value += weight[..., None] * texel
    return value


def clutter(key: jax.Array, time: jax.Array) -> Capsules:
    """Two things that drift behind or beside the person, and a pole before them."""
    unit = draws(jax.random.split(key, 8), 6)
    of_things = unit.reshape(8, 2, 3)
    place = between(-1.0, 1.0, of_things[0]) * jnp.array([1.5, 0.9, 0.6])
    place += jnp.array([0.0, 1.0, -1.2])
    velocity = between(-0.9, 0.9, of_things[1]) * jnp.array([1.0, 0.5, 0.3])
    start = place[:, None] + velocity[:, None] * time[:, None]
    end = start + between(-0.4, 0.4, of_things[2])[:, None]
    there = unit[3, :2, None] < 0.5
    radii = between(0.04, 0.18, unit[4, :2, None]) * there * jnp.ones((2, 2))
    things = Capsules(start, end, radii, colour(of_things[5]), jnp.zeros(2))
    x, speed, width, there = unit[6, :4]
    foot = jnp.stack(
        [2.4 * x - 1.2 + 0.6 * (speed - 0.5) * time, 0 * time, 0 * time + 0.9], -1
    )
    pole = single(
        foot,
        foot + jnp.array([0.0, 2.6, 0.0]),
        (0.03 + 0.05 * width) * (there < 0.25),
        colour(unit[7, :3]),
        0.0,
    )
    return joined(things, pole)


def shadow(action: motions.Action, camera: Camera, time, pixels) -> jax.Array:
    """(t, h, w, 1): how much light a soft spot under the person takes away."""
    under = action.joints[:, JOINTS.index("pelvis")] * jnp.array([1.0, 0.0, 1.0])
    spot, scale = project(camera, under, time)
    away = (pixels - spot[:, None, None]) / scale[:, None, None, None]
    flat = away * jnp.array([2.2, 6.0])  # a circle on the floor, seen from the side
    return 0.45 * jnp.exp(-jnp.square(flat).sum(-1, keepdims=True))
