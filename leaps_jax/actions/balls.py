"""The balls of the classes that have some: their positions over time.

Each function takes (joints, clock, style) and returns positions (BALLS, t, 3) in metres
and radii (BALLS,), 0 for a ball that is not there.
"""

import functools

import jax
import jax.numpy as jnp

from leaps_jax.actions.poses import PI, Clock, Style, until_release
from leaps_jax.actions.skeleton import joint

BALLS = 3


def no_balls(joints: jax.Array, clock: Clock, style: Style):
    """The balls of a class without balls: all of radius 0."""
    return jnp.zeros((BALLS, len(clock.time), 3)), jnp.zeros(BALLS)


def _one_ball(position: jax.Array, radius: float):
    rest = jnp.zeros((BALLS - 1, *position.shape))
    return jnp.concatenate([position[None], rest]), jnp.zeros(BALLS).at[0].set(radius)


def juggled(joints: jax.Array, clock: Clock, style: Style):
    """Three juggled balls, which fly from hand to hand; the pose is `poses.juggle`."""
    left, right = joint(joints, "left hand"), joint(joints, "right hand")
    # each ball: left to right in half a cycle, back in the other
    cycle = clock.angle(1.35, style) / (2 * PI) + jnp.arange(BALLS)[:, None] / BALLS
    half = (2 * cycle) % 1.0
    flight = jnp.clip((half - 0.2) / 0.8, 0, 1)[..., None]
    from_left = ((2 * cycle) % 2.0 < 1.0)[..., None]
    source, target = (
        jnp.where(from_left, left, right),
        jnp.where(from_left, right, left),
    )
    height = (0.55 + 0.25 * style.amplitude) * 4 * flight * (1 - flight)
    lift = jnp.array([0.0, 1.0, 0.0])
    balls = source + (target - source) * flight + lift * (height + 0.07)
    return balls, jnp.full(BALLS, 0.075)


def dribbled(joints: jax.Array, clock: Clock, style: Style):
    """A ball that bounces below one hand; the pose is `poses.dribble`."""
    hand = jnp.where(
        style.side > 0, joint(joints, "left hand"), joint(joints, "right hand")
    )
    # at the hand when the forearm is high, at the floor when it is low
    bounce = (clock.angle(0.62, style) / (2 * PI)) % 1.0
    height = jnp.square(2 * bounce - 1)[:, None]  # 1 at the hand, 0 at the floor
    floor = 0.13
    y = floor + (hand[:, 1:2] - 0.16 - floor) * (1 - jnp.square(1 - height))
    ball = jnp.concatenate([hand[:, :1], y, hand[:, 2:] + 0.05], axis=1)
    return _one_ball(ball, 0.125)


def thrown(joints: jax.Array, clock: Clock, style: Style):
    """A ball that both hands hold, throw and let roll; the pose is `poses.throw`."""
    hands = (joint(joints, "left hand") + joint(joints, "right hand")) / 2
    held = hands + jnp.array([0.0, 0.0, 0.12])
    until = until_release(style)
    release = (until.start + 0.75 * until.length) * clock.total
    since = jnp.maximum(clock.time - release, 0.0)[:, None]
    flying = clock.time > release
    order = jnp.argsort(clock.time)
    at_release = functools.partial(jnp.interp, release, clock.time[order])
    origin = jax.vmap(at_release, 1)(held[order])
    path = since * jnp.array([0.0, 1.2, 3.2]) * style.tempo
    path += jnp.square(since) * jnp.array([0.0, -4.9, 0.0])
    ball = jnp.where(flying[:, None], origin + path, held)
    return _one_ball(ball.at[:, 1].max(0.125), 0.125)
