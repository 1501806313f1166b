"""The joints of a figure: proportions, poses and where a pose puts the joints.

A person stands at the origin, in metres: x to their left, y up, z where they face. A
limb hangs down at angle 0; `flex` swings it forward and `out` away from the body, so
that pi points straight up by either. Feet stay on the floor unless the person jumps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

JOINTS = (
    *("pelvis", "chest", "head"),
    *("left shoulder", "left elbow", "left hand"),
    *("right shoulder", "right elbow", "right hand"),
    *("left hip", "left knee", "left ankle", "left toe"),
    *("right hip", "right knee", "right ankle", "right toe"),
)


class Body(NamedTuple):
    """Lengths of a person, in metres; widths are half widths, the forearm is `arm`."""

    torso: jax.Array
    neck: jax.Array
    shoulder: jax.Array
    hip: jax.Array
    arm: jax.Array
    thigh: jax.Array
    shin: jax.Array
    foot: jax.Array


class Pose(NamedTuple):
    """Angles in radians over time; limbs are (2, t), left and right, the others (t,).

    The forearm has angles of its own, not relative to the upper arm; the knee is
    relative to the thigh. `fixed_feet` holds the ankles in place instead of the pelvis.
    """

    thigh: jax.Array
    thigh_out: jax.Array
    knee: jax.Array
    upper: jax.Array
    upper_out: jax.Array
    fore: jax.Array
    fore_out: jax.Array
    lean: jax.Array
    twist: jax.Array
    turn: jax.Array
    advance: jax.Array
    jump: jax.Array
    fixed_feet: jax.Array


def skeleton(body: Body, pose: Pose) -> jax.Array:
    """Joint positions (t, len(JOINTS), 3) of a pose, by forward kinematics."""
    still = jnp.zeros_like(pose.lean)

    def spine(angle):
        return jnp.stack([still, jnp.cos(angle), jnp.sin(angle)], -1)

    pelvis = jnp.stack([still, still, still], -1)
    chest = pelvis + body.torso * spine(pose.lean)
    head = chest + body.neck * spine(0.7 * pose.lean)
    joints = {"pelvis": pelvis, "chest": chest, "head": head}
    left = jnp.stack([jnp.cos(pose.twist), still, jnp.sin(pose.twist)], -1)
    for i, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        shoulder = chest + sign * body.shoulder * left - 0.04 * spine(pose.lean)
        elbow = shoulder + body.arm * _limb(pose.upper[i], pose.upper_out[i], sign)
        hand = elbow + body.arm * _limb(pose.fore[i], pose.fore_out[i], sign)
        hip = pelvis + jnp.array([sign * body.hip, -0.05, 0.0])
        knee = hip + body.thigh * _limb(pose.thigh[i], pose.thigh_out[i], sign)
        shin = pose.thigh[i] - pose.knee[i]
        ankle = knee + body.shin * _limb(shin, 0.6 * pose.thigh_out[i], sign)
        toe = ankle + body.foot * _limb(shin + 1.4, still, sign)
        parts = (shoulder, elbow, hand, hip, knee, ankle, toe)
        names = ("shoulder", "elbow", "hand", "hip", "knee", "ankle", "toe")
        joints |= {
            f"{side} {name}": part for name, part in zip(names, parts, strict=True)
        }
    return _on_the_floor(jnp.stack([joints[name] for name in JOINTS], 1), pose)


def _on_the_floor(joints: jax.Array, pose: Pose) -> jax.Array:
    feet = [
        joint(joints, f"{s} {p}") for s in ("left", "right") for p in ("ankle", "toe")
    ]
    soles = [foot[:, 1] - r for foot, r in zip(feet, (0.07, 0.04) * 2, strict=True)]
    y = pose.jump - jnp.stack(soles).min(0)
    z = pose.advance - pose.fixed_feet * (feet[0] + feet[2])[:, 2] / 2
    return joints + jnp.stack([jnp.zeros_like(y), y, z], -1)[:, None]


def _limb(flex: jax.Array, out: jax.Array, sign: float) -> jax.Array:
    return jnp.stack(
        [
            sign * jnp.sin(out),
            -jnp.cos(out) * jnp.cos(flex),
            jnp.cos(out) * jnp.sin(flex),
        ],
        -1,
    )


def joint(joints: jax.Array, name: str) -> jax.Array:
    """One joint (t, 3) of (t, len(JOINTS), 3), by its name."""
    return joints[:, JOINTS.index(name)]
