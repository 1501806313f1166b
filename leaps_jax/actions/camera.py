"""The camera of a scene: where it stands, how it moves, and what it projects."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from leaps_jax.actions.sampling import between, draws


class Camera(NamedTuple):
    """Position and motion of a camera: scalars, but for `pan` and `pan_speed` (2,)."""

    distance: jax.Array
    elevation: jax.Array
    height: jax.Array
    focal: jax.Array  # frame heights per unit of x / depth
    roll: jax.Array
    roll_speed: jax.Array
    zoom_speed: jax.Array
    pan: jax.Array
    pan_speed: jax.Array


def draw_camera(key: jax.Array) -> Camera:
    """Draws a camera at eye level, 4 to 7 m away, that drifts, zooms and turns."""
    pairs = draws(jax.random.split(key, 9), 2)
    unit, pan, pan_speed = pairs[:7, 0], pairs[7], pairs[8]
    distance = between(4.0, 7.0, unit[0])
    share = between(0.52, 0.75, unit[1])  # of the frame, for 1.75 m
    return Camera(
        distance=distance,
        elevation=between(0.0, 0.3, unit[2]),
        height=between(0.95, 1.1, unit[3]),
        focal=share * distance / 1.75,
        roll=between(-0.06, 0.06, unit[4]),
        roll_speed=between(-0.05, 0.05, unit[5]),
        zoom_speed=between(-0.08, 0.08, unit[6]),
        pan=between(-0.08, 0.08, pan) * jnp.array([1.0, 0.5]),
        pan_speed=between(-0.05, 0.05, pan_speed),
    )


def project(camera: Camera, points: jax.Array, time: jax.Array):
    """Projects points (..., t, 3) of the world to the screen.

    Returns:
      (..., t, 2) x to the right and y down in frame heights from the middle, and the
      scale (..., t) in frame heights a metre.
    """
    flat, scale = project_level(camera, points)
    zoom = 1 + camera.zoom_speed * time
    turned = rotated(camera, flat * zoom[:, None], time, 1.0)
    return turned + pan_at(camera, time), scale * zoom


def project_level(camera: Camera, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`project` for a camera that stands still and level."""
    x, y, z = jnp.moveaxis(points, -1, 0)
    y = y - camera.height
    sin, cos = jnp.sin(camera.elevation), jnp.cos(camera.elevation)
    y, z = y * cos - z * sin, z * cos + y * sin
    scale = camera.focal / jnp.maximum(camera.distance - z, 0.5)
    return jnp.stack([x, -y], -1) * scale[..., None], scale


def rotated(camera: Camera, points, time, sign) -> jax.Array:
    """Turns screen points (..., t, 2) by the camera's roll; sign -1 undoes it."""
    roll = sign * (camera.roll + camera.roll_speed * time)
    sin, cos = jnp.sin(roll), jnp.cos(roll)
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([x * cos - y * sin, x * sin + y * cos], -1)


def pan_at(camera: Camera, time) -> jax.Array:
    """The shift of the picture at times (t,), as (t, 2) in frame heights."""
    return camera.pan + camera.pan_speed * time[:, None]
