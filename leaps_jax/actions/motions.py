"""The classes of the synthetic actions, and how a person performs them.

A class whose motion is another's played backwards *is* that motion at reversed times:
the frames of the two have one distribution, and only their order tells them apart.

>>> REVERSED["sitting down"], MIRRORED["waving left hand"]
('standing up', 'waving right hand')
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from leaps_jax.actions import balls, poses
from leaps_jax.actions.poses import Clock, Style
from leaps_jax.actions.skeleton import Body, Pose, joint, skeleton


@dataclasses.dataclass(frozen=True)
class Motion:
    """A class.

    Attributes:
      name: of the class.
      pose: what the body does.
      balls: where balls are.
      facing: smallest and largest angle to the camera, in degrees; the figure turns
        to either side, which `Style.side` chooses.
      reversed: played backwards.
      heading: 1 moves to the right of the screen and -1 to the left, 0 stays. Half
        of the figures walk backwards, or the way they face would give it away.
      seat: whether a stool stands behind the person.
    """

    name: str
    pose: Callable[[Clock, Style], Pose]
    balls: Callable = balls.no_balls
    facing: tuple[float, float] = (0, 35)
    reversed: bool = False
    heading: int = 0
    seat: bool = False


MOTIONS = (
    Motion("walking left", poses.walk, facing=(65, 105), heading=-1),
    Motion("walking right", poses.walk, facing=(65, 105), heading=1),
    Motion("running left", poses.run, facing=(65, 105), heading=-1),
    Motion("running right", poses.run, facing=(65, 105), heading=1),
    Motion("sitting down", poses.sit_down, facing=(35, 85), seat=True),
    Motion("standing up", poses.sit_down, facing=(35, 85), seat=True, reversed=True),
    Motion("raising both arms", poses.raise_arms),
    Motion("lowering both arms", poses.raise_arms, reversed=True),
    Motion("waving left hand", poses.wave_left),
    Motion("waving right hand", poses.wave_right),
    Motion("waving both hands", poses.wave_both),
    Motion("jumping jack", poses.jumping_jack),
    Motion("squatting", poses.squat, facing=(0, 75)),
    Motion("bending", poses.bend, facing=(40, 95)),
    Motion("boxing", poses.box, facing=(25, 85)),
    Motion("kicking", poses.kick, facing=(35, 95)),
    Motion("clapping", poses.clap),
    Motion("hopping", poses.hop, facing=(0, 75)),
    Motion("juggling balls", poses.juggle, balls.juggled),
    Motion("dribbling a basketball", poses.dribble, balls.dribbled, facing=(10, 70)),
    Motion("throwing", poses.throw, balls.thrown, facing=(50, 95)),
    Motion("catching", poses.throw, balls.thrown, facing=(50, 95), reversed=True),
    Motion("spinning", poses.spin),
)
CLASSES = tuple(motion.name for motion in MOTIONS)


def _pairs(*pairs: tuple[str, str]) -> dict[str, str]:
    return dict(pairs) | {b: a for a, b in pairs}


#: A clip of the one, played backwards, is a clip of the other.
REVERSED = _pairs(
    ("walking left", "walking right"),
    ("running left", "running right"),
    ("sitting down", "standing up"),
    ("raising both arms", "lowering both arms"),
    ("throwing", "catching"),
)
#: A clip of the one, seen in a mirror, is a clip of the other.
MIRRORED = _pairs(
    ("walking left", "walking right"),
    ("running left", "running right"),
    ("waving left hand", "waving right hand"),
)


class Action(NamedTuple):
    """A figure in the world: x to the right of the screen, y up, z to the camera.

    Attributes:
      joints: (t, len(JOINTS), 3) in metres; the figure's place is the origin.
      balls: (BALLS, t, 3).
      ball_radii: (BALLS,), 0 for a ball that is not there.
      seat: (3,) the middle of the stool's seat.
      has_seat: whether it is there.
    """

    joints: jax.Array
    balls: jax.Array
    ball_radii: jax.Array
    seat: jax.Array
    has_seat: jax.Array


def perform(
    label: jax.typing.ArrayLike,
    body: Body,
    style: Style,
    facing: jax.Array,
    clock: Clock,
) -> Action:
    """One person's performance of a class.

    Args:
      label: index of the class, ().
      body: proportions.
      style: of the performance.
      facing: where in the class's range of angles, in [0, 1].
      clock: times of the frames.
    """
    heading = jnp.array([motion.heading for motion in MOTIONS])[label]
    reversed_ = jnp.array([motion.reversed for motion in MOTIONS])[label]
    backwards = reversed_ ^ (heading * style.side < 0)
    time = jnp.where(backwards, clock.total - clock.time, clock.time)
    clock = clock._replace(time=time)
    pose = _of_class(label, [motion.pose for motion in MOTIONS], clock, style)
    joints = skeleton(body, pose)
    ways = [motion.balls for motion in MOTIONS]
    positions, radii = _of_class(label, ways, joints, clock, style)
    low, high = jnp.array([motion.facing for motion in MOTIONS])[label]
    yaw = style.side * jnp.deg2rad(low + (high - low) * facing) + pose.turn
    seat = _seated(body) - jnp.array([0.0, 0.16, 0.05])
    return Action(
        _turned(joints, yaw[:, None]),
        _turned(positions, yaw),
        radii,
        _turned(seat, yaw[0]),
        jnp.array([motion.seat for motion in MOTIONS])[label],
    )


def _of_class(label: jax.typing.ArrayLike, functions: list[Callable], *arguments):
    """Calls the function of a class; one of several classes is compiled once.

    Each gives one vector, which is one kernel where XLA would make one for each array.
    """
    distinct = list(dict.fromkeys(functions))
    index = jnp.array([distinct.index(function) for function in functions])[label]
    _, unravel = ravel_pytree(functions[0](*arguments))
    flat = [lambda *x, f=f: ravel_pytree(f(*x))[0] for f in distinct]
    return unravel(jax.lax.switch(index, flat, *arguments))


def _seated(body: Body) -> jax.Array:
    """(3,) where the pelvis of a person is who sits."""
    clock = Clock(jnp.zeros(1), jnp.ones(()))
    done = Style(*[jnp.ones(())] * len(Style._fields))._replace(start=jnp.array(-2.0))
    return joint(skeleton(body, poses.sit_down(clock, done)), "pelvis")[0]


def _turned(points: jax.Array, yaw: jax.Array) -> jax.Array:
    x, y, z = jnp.moveaxis(points, -1, 0)
    sin, cos = jnp.sin(yaw), jnp.cos(yaw)
    return jnp.stack([x * cos + z * sin, y + 0 * yaw, z * cos - x * sin], -1)
