"""Renders synthetic actions: a person, a place, a camera and things in the way.

Everything solid is a capsule, before a wall and a floor with a 1/f texture. All of it
is drawn from one key.

>>> label = motions.CLASSES.index("clapping")
>>> scene = render(jax.random.key(0), label, frames=4, size=32)
>>> scene.video.shape, scene.joints.shape, scene.flow.shape
((4, 32, 32, 3), (4, 17, 2), (3, 32, 32, 2))
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from leaps_jax.actions import motions
from leaps_jax.actions.camera import draw_camera, project
from leaps_jax.actions.capsules import joined, paint
from leaps_jax.actions.figure import draw_body, draw_colours, draw_style, person
from leaps_jax.actions.place import background, clutter, shadow
from leaps_jax.actions.poses import Clock
from leaps_jax.actions.sampling import between, draws


class Scene(NamedTuple):
    """A clip and its ground truth.

    Attributes:
      video: (t, h, w, 3) pixels in [0, 1].
      label: index into `motions.CLASSES`.
      joints: (t, joints, 2) x and y in pixels, of `skeleton.JOINTS`.
      joints_3d: (t, joints, 3) in metres; x right, y up, z to the camera.
      figure: (t, h, w) how much of a pixel is the person or their ball.
      flow: (t - 1, h, w, 2) pixels that this point of the figure moves to the next
        frame; 0 off the figure.
    """

    video: jax.Array
    label: jax.Array
    joints: jax.Array
    joints_3d: jax.Array
    figure: jax.Array
    flow: jax.Array


@functools.partial(jax.jit, static_argnames=("frames", "size", "fps"))
def render(
    key: jax.Array,
    label: jax.typing.ArrayLike,
    *,
    frames: int = 16,
    size: int = 112,
    fps=15.0,
) -> Scene:
    """One clip of a class, everything else drawn at random.

    Args:
      key: decides the person, the place, the camera and the way of doing it.
      label: index into `motions.CLASSES`.
      frames: of the clip.
      size: height and width in pixels.
      fps: frames a second.

    Returns:
      The clip with its ground truth.
    """
    keys = jax.random.split(key, 9)
    time = jnp.arange(frames) / fps
    clock = Clock(time, jnp.maximum(time[-1], 1e-3))
    # drifts start in the middle of the clip: a first frame must not look like one
    drift = time - time[-1] / 2
    unit = draws(keys, 3)
    camera = draw_camera(keys[0])
    action = motions.perform(
        label,
        draw_body(keys[1]),
        draw_style(keys[2]),
        unit[3, 0],
        clock,
    )
    spot = between(-1.0, 1.0, unit[4]) * jnp.array([0.25, 0.0, 0.3])
    action = action._replace(
        joints=action.joints + spot, balls=action.balls + spot, seat=action.seat + spot
    )
    steps = (jnp.arange(size) + 0.5) / size - 0.5
    pixels = jnp.stack(jnp.meshgrid(steps, steps), -1)  # h w (x, y)
    behind = background(keys[5], camera, drift, pixels)
    behind = jnp.clip(behind, 0, 1) * (1 - shadow(action, camera, drift, pixels))
    capsules = joined(person(action, draw_colours(keys[6])), clutter(keys[7], drift))
    angle, grain, gain = between(-1.0, 1.0, unit[8])
    light = jnp.array([jnp.sin(angle), -0.6, 0.7])
    light /= jnp.linalg.norm(light)
    video, figure, flow = paint(capsules, camera, drift, pixels, behind, light)
    noise = jax.random.normal(jax.random.fold_in(keys[8], 1), video.shape)
    video = video * (1 + 0.15 * gain) + 0.02 * jnp.abs(grain) * noise
    joints, _ = project(camera, jnp.moveaxis(action.joints, 1, 0), drift)
    return Scene(
        video=jnp.clip(video, 0, 1),
        label=jnp.asarray(label),
        joints=(jnp.moveaxis(joints, 0, 1) + 0.5) * size,
        joints_3d=action.joints,
        figure=figure,
        flow=flow[:-1] * size,
    )


def clip(
    key: jax.Array,
    label: jax.typing.ArrayLike,
    *,
    frames: int = 16,
    size: int = 112,
    fps=15.0,
) -> tuple[jax.Array, jax.Array]:
    """What a training needs of `render`.

    Returns:
      Pixels (frames, size, size, 3), and joints (frames, joints, 2) in frame sizes.
    """
    scene = render(key, label, frames=frames, size=size, fps=fps)
    return scene.video, scene.joints / size


def still(
    key: jax.Array, label: jax.typing.ArrayLike, **options
) -> tuple[jax.Array, jax.Array]:
    """A clip in which one frame of `clip`, any of them, stands still.

    What a model learns from such clips is what single frames tell of a class: the
    control for every claim about motion.
    """
    video, joints = clip(key, label, **options)
    frame = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(video))
    frozen = [jnp.broadcast_to(x[frame], x.shape) for x in (video, joints)]
    return frozen[0], frozen[1]


# What `--data` can name: rendered while it is used.
RENDERED = {"synthetic_actions": clip, "synthetic_stills": still}
