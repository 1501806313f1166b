"""The person of a scene, and what they handle, as capsules."""

import jax
import jax.numpy as jnp

from leaps_jax.actions import motions
from leaps_jax.actions.capsules import Capsules, joined, single
from leaps_jax.actions.poses import Style
from leaps_jax.actions.sampling import between, colour, draws
from leaps_jax.actions.skeleton import JOINTS, Body


def draw_body(key: jax.Array) -> Body:
    """A person of 1.5 to 1.95 m."""
    scale, build, legs = between(-1.0, 1.0, jax.random.uniform(key, (3,)))
    height = 1.0 + 0.12 * scale
    return Body(
        torso=0.50 * height,
        neck=0.24 * height,
        shoulder=(0.19 + 0.025 * build) * height,
        hip=(0.095 + 0.01 * build) * height,
        arm=0.285 * height,
        thigh=(0.44 + 0.02 * legs) * height,
        shin=(0.42 + 0.02 * legs) * height,
        foot=0.17 * height,
    )


def draw_style(key: jax.Array) -> Style:
    """Tempo, phase, side and the rest, the same for every class."""
    unit = draws(jax.random.split(key, 7))[:, 0]
    start = between(-0.05, 0.2, unit[5])
    return Style(
        tempo=between(0.85, 1.2, unit[0]),
        phase=unit[1],
        amplitude=between(0.85, 1.15, unit[2]),
        side=jnp.where(unit[3] < 0.5, 1.0, -1.0),
        route=unit[4],
        start=start,
        length=between(0.65, 1.0 - start, unit[6]),
    )


_BONES = (
    # two joints, radii in metres, part
    ("pelvis", "chest", 0.125, 0.15, "shirt"),
    ("left shoulder", "right shoulder", 0.075, 0.075, "shirt"),
    ("left hip", "right hip", 0.105, 0.105, "trousers"),
    ("chest", "head", 0.06, 0.06, "skin"),
    ("head", "head", 0.115, 0.115, "skin"),
    ("left shoulder", "left elbow", 0.062, 0.052, "shirt"),
    ("right shoulder", "right elbow", 0.062, 0.052, "shirt"),
    ("left elbow", "left hand", 0.048, 0.042, "sleeve"),
    ("right elbow", "right hand", 0.048, 0.042, "sleeve"),
    ("left hand", "left hand", 0.06, 0.06, "skin"),
    ("right hand", "right hand", 0.06, 0.06, "skin"),
    ("left hip", "left knee", 0.095, 0.07, "trousers"),
    ("right hip", "right knee", 0.095, 0.07, "trousers"),
    ("left knee", "left ankle", 0.066, 0.05, "trousers"),
    ("right knee", "right ankle", 0.066, 0.05, "trousers"),
    ("left ankle", "left toe", 0.055, 0.042, "shoes"),
    ("right ankle", "right toe", 0.055, 0.042, "shoes"),
)
_PARTS = ("shirt", "trousers", "skin", "sleeve", "shoes", "hair")


def draw_colours(key: jax.Array) -> jax.Array:
    """(parts, 3): clothes of any colour, skin and hair of those that people have."""
    unit = draws(jax.random.split(key, 7), 9)
    clothes = colour(unit[0].reshape(3, 3))
    tone, dark, short = unit[1:4, 0]
    skin = jnp.array([0.93, 0.75, 0.62]) * (1 - tone) + tone * jnp.array(
        [0.38, 0.24, 0.16]
    )
    hair = between(0.05, 0.5, dark) * jnp.array([1.0, 0.75, 0.5])
    sleeve = jnp.where(short < 0.5, clothes[0], skin)
    return jnp.stack([clothes[0], clothes[1], skin, sleeve, clothes[2], hair])


def person(action: motions.Action, colours: jax.Array) -> Capsules:
    """The capsules of a body, its hair, balls and stool."""
    index = jnp.array([[JOINTS.index(a), JOINTS.index(b)] for a, b, *_ in _BONES])
    joints = jnp.moveaxis(action.joints, 1, 0)  # j t 3
    start, end = joints[index[:, 0]], joints[index[:, 1]]
    radii = jnp.array([[r0, r1] for _, _, r0, r1, _ in _BONES])
    parts = jnp.array([_PARTS.index(part) for *_, part in _BONES])
    body = Capsules(start, end, radii, colours[parts], jnp.ones(len(_BONES)))
    return joined(body, _hair(joints, colours), _balls(action), _stool(action))


def _hair(joints: jax.Array, colours: jax.Array) -> Capsules:
    """A cap on the back of the head, so that one sees which way it faces."""
    head = joints[JOINTS.index("head")]
    across = (
        joints[JOINTS.index("left shoulder")] - joints[JOINTS.index("right shoulder")]
    )
    forward = jnp.cross(across, jnp.array([0.0, 1.0, 0.0]))
    forward /= jnp.linalg.norm(forward, axis=-1, keepdims=True)
    cap = head + jnp.array([0.0, 0.05, 0.0]) - 0.05 * forward
    return single(cap, cap, 0.115, colours[_PARTS.index("hair")], 1.0)


def _balls(action: motions.Action) -> Capsules:
    n = len(action.balls)
    colours = jnp.array([[0.95, 0.45, 0.1], [0.95, 0.85, 0.15], [0.2, 0.75, 0.95]])
    radii = jnp.repeat(action.ball_radii[:, None], 2, 1)
    return Capsules(action.balls, action.balls, radii, colours, jnp.ones(n))


def _stool(action: motions.Action) -> Capsules:
    frames = len(action.joints)
    there = action.has_seat.astype(jnp.float32)
    seat = jnp.broadcast_to(action.seat, (frames, 3))
    foot = seat * jnp.array([1.0, 0.0, 1.0])
    colour = jnp.array([0.42, 0.28, 0.16])
    wide = seat - jnp.array([0.17, 0.0, 0.0]), seat + jnp.array([0.17, 0.0, 0.0])
    return joined(
        single(*wide, 0.06 * there, colour, 0.0),
        single(foot, seat, 0.08 * there, colour, 0.0),
    )
