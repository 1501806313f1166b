"""The pose of a figure over time, for each class."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from leaps_jax.actions.skeleton import Pose

PI = jnp.pi


class Style(NamedTuple):
    """How a person does it: scalars.

    Attributes:
      tempo: factor on speed.
      phase: where in its cycle a motion starts, in [0, 1).
      amplitude: factor on angles.
      side: 1 or -1, which leg kicks, which hand dribbles, which side is shown.
      route: in [0, 1], one way of doing it or another.
      start, length: of a motion that happens once, as shares of the clip.
    """

    tempo: jax.Array
    phase: jax.Array
    amplitude: jax.Array
    side: jax.Array
    route: jax.Array
    start: jax.Array
    length: jax.Array


class Clock(NamedTuple):
    """Times (t,) in seconds of a clip's frames, and the clip's length."""

    time: jax.Array
    total: jax.Array

    def angle(self, period: float, style: Style) -> jax.Array:
        """The phase of a motion that repeats every `period` seconds."""
        return 2 * PI * (self.time * style.tempo / period + style.phase)

    def progress(self, style: Style) -> jax.Array:
        """0 before and 1 after a motion that happens once, smooth between."""
        u = (self.time / self.total - style.start) / style.length
        u = jnp.clip(u, 0, 1)
        return u * u * (3 - 2 * u)


def standing(clock: Clock) -> Pose:
    """At ease, arms hanging."""
    still = jnp.zeros_like(clock.time)
    both = jnp.stack([still, still])
    return Pose(
        thigh=both,
        thigh_out=both + 0.05,
        knee=both + 0.05,
        upper=both,
        upper_out=both + 0.15,
        fore=both + 0.2,
        fore_out=both + 0.1,
        lean=still,
        twist=still,
        turn=still,
        advance=still,
        jump=still,
        fixed_feet=jnp.zeros(()),
    )


def _still(clock: Clock, value: float) -> jax.Array:
    return jnp.full_like(clock.time, value)


def _both(x: jax.Array) -> jax.Array:
    return jnp.stack([x, x])


def _alternating(x: Callable[[jax.Array], jax.Array], angle: jax.Array) -> jax.Array:
    return jnp.stack([x(angle), x(angle + PI)])


def _sided(left: jax.Array, right: jax.Array, side: jax.Array) -> jax.Array:
    """(left, right), exchanged when side is negative."""
    return jnp.where(side > 0, jnp.stack([left, right]), jnp.stack([right, left]))


def walk(clock: Clock, style: Style) -> Pose:
    """Walks, arms against legs."""
    angle = clock.angle(1.05, style)
    swing = 0.45 * style.amplitude
    return standing(clock)._replace(
        thigh=_alternating(lambda a: swing * jnp.sin(a), angle),
        knee=_alternating(lambda a: 0.1 + jnp.square(0.5 + 0.5 * jnp.cos(a)), angle),
        upper=-_alternating(lambda a: 0.9 * swing * jnp.sin(a), angle),
        fore=0.3 - _alternating(lambda a: 0.9 * swing * jnp.sin(a), angle),
        advance=1.3 * style.tempo * (clock.time - clock.total / 2),
        lean=_still(clock, 0.04),
    )


def run(clock: Clock, style: Style) -> Pose:
    """Runs: longer steps, bent arms, a body that leans and rises."""
    angle = clock.angle(0.68, style)
    swing = 0.8 * style.amplitude
    thigh = _alternating(lambda a: 0.2 + swing * jnp.sin(a), angle)
    knee = _alternating(
        lambda a: 0.35 + 1.7 * jnp.square(0.5 + 0.5 * jnp.cos(a)), angle
    )
    arm = -_alternating(lambda a: 0.8 * swing * jnp.sin(a), angle)
    return standing(clock)._replace(
        thigh=thigh,
        knee=knee,
        upper=arm,
        fore=arm + 1.6,
        advance=1.7 * style.tempo * (clock.time - clock.total / 2),
        lean=_still(clock, 0.2),
        jump=0.1 * jnp.square(jnp.sin(angle + 0.6)),
    )


def sit_down(clock: Clock, style: Style) -> Pose:
    """Sits down on a stool, once."""
    u = clock.progress(style)
    bump = jnp.sin(PI * u)
    return standing(clock)._replace(
        thigh=_both(1.5 * u),
        knee=_both(0.05 + 1.45 * u + 0.25 * bump),
        upper=_both(0.6 * bump + 0.3 * u),
        fore=_both(0.2 + 0.5 * bump + 0.9 * u),
        lean=0.65 * bump + 0.05,
        fixed_feet=jnp.ones(()),
    )


def raise_arms(clock: Clock, style: Style) -> Pose:
    """Raises both arms once, in front or at the sides."""
    u = clock.progress(style)
    lift = _both(0.15 + 2.75 * style.amplitude.clip(0.9, 1.05) * u)
    forward = style.route > 0.5
    return standing(clock)._replace(
        upper=jnp.where(forward, lift, 0.0),
        fore=jnp.where(forward, lift + 0.1, 0.0),
        upper_out=jnp.where(forward, 0.15, lift),
        fore_out=jnp.where(forward, 0.15, lift + 0.1),
    )


def _waving(clock: Clock, style: Style, left: bool, right: bool) -> Pose:
    angle = clock.angle(0.62, style)
    swing = PI - 0.15 + 0.6 * style.amplitude * jnp.sin(angle)
    rest = standing(clock)
    raised = jnp.array([[left], [right]])
    mirrored = PI - 0.15 + 0.6 * style.amplitude * jnp.sin(angle + 2 * PI * style.route)
    return rest._replace(
        upper_out=jnp.where(raised, 1.75, rest.upper_out),
        fore_out=jnp.where(raised, jnp.stack([swing, mirrored]), rest.fore_out),
        upper=jnp.where(raised, 0.1, rest.upper),
        fore=jnp.where(raised, 0.1, rest.fore),
    )


def wave_left(clock: Clock, style: Style) -> Pose:
    """Waves the left hand."""
    return _waving(clock, style, left=True, right=False)


def wave_right(clock: Clock, style: Style) -> Pose:
    """Waves the right hand."""
    return _waving(clock, style, left=False, right=True)


def wave_both(clock: Clock, style: Style) -> Pose:
    """Waves both hands."""
    return _waving(clock, style, left=True, right=True)


def jumping_jack(clock: Clock, style: Style) -> Pose:
    """Jumps with legs and arms apart, and back."""
    angle = clock.angle(0.95, style)
    spread = 0.5 - 0.5 * jnp.cos(angle)
    arms = _both(0.15 + 2.6 * spread)
    return standing(clock)._replace(
        upper_out=arms,
        fore_out=arms + 0.15,
        upper=_both(_still(clock, 0.05)),
        fore=_both(_still(clock, 0.05)),
        thigh_out=_both(0.04 + 0.45 * style.amplitude * spread),
        jump=0.14 * jnp.square(jnp.sin(angle)),
    )


def squat(clock: Clock, style: Style) -> Pose:
    """Squats and rises, arms held out."""
    down = 0.5 - 0.5 * jnp.cos(clock.angle(1.15, style))
    return standing(clock)._replace(
        thigh=_both(1.75 * down),
        knee=_both(0.05 + 2.25 * down),
        thigh_out=_both(0.12 + 0.2 * down),
        upper=_both(1.5 * down),
        fore=_both(0.2 + 1.3 * down),
        lean=0.45 * down,
        fixed_feet=jnp.ones(()),
    )


def bend(clock: Clock, style: Style) -> Pose:
    """Bends forward and rises."""
    down = 0.5 - 0.5 * jnp.cos(clock.angle(1.3, style))
    return standing(clock)._replace(
        thigh=_both(0.22 * down),
        lean=1.75 * style.amplitude.clip(0.9, 1.1) * down,
        upper=_both(0.35 * down),
        fore=_both(0.2 + 0.1 * down),
        fixed_feet=jnp.ones(()),
    )


def box(clock: Clock, style: Style) -> Pose:
    """Punches with one hand and then the other."""
    angle = clock.angle(0.66, style)

    def punch(a):
        return jnp.maximum(jnp.sin(a), 0.0) ** 1.5

    out = _alternating(punch, angle)
    return standing(clock)._replace(
        thigh=_sided(_still(clock, 0.3), _still(clock, -0.25), style.side),
        knee=_both(_still(clock, 0.3)),
        upper=0.45 + 1.1 * out,
        fore=2.5 - 0.93 * out,
        upper_out=0.3 - 0.25 * out,
        fore_out=-0.25 + 0.15 * out,
        twist=0.55 * style.amplitude * (out[0] - out[1]),
        lean=_still(clock, 0.12),
    )


def kick(clock: Clock, style: Style) -> Pose:
    """Kicks with the leg of its side."""
    angle = clock.angle(0.95, style)
    up = jnp.square(0.5 - 0.5 * jnp.cos(angle))
    leg = -0.45 + 2.0 * style.amplitude * up
    knee = 0.15 + 0.9 * jnp.maximum(jnp.sin(angle), 0.0)
    still = _still(clock, 0.0)
    return standing(clock)._replace(
        thigh=_sided(leg, still, style.side),
        knee=_sided(knee, still + 0.15, style.side),
        upper=_sided(still - 0.4 * up, still + 0.7 * up, style.side),
        upper_out=_both(0.35 + 0.4 * up),
        fore=_both(0.6 + 0.2 * up),
        fore_out=_both(0.4 + 0.3 * up),
        lean=0.05 - 0.3 * up,
    )


def clap(clock: Clock, style: Style) -> Pose:
    """Claps in front of the chest."""
    apart = 0.5 - 0.5 * jnp.cos(clock.angle(0.45, style))
    return standing(clock)._replace(
        upper=_both(_still(clock, 0.75)),
        upper_out=_both(0.1 + 0.5 * apart),
        fore=_both(_still(clock, 1.75)),
        fore_out=_both(-0.72 + 1.25 * style.amplitude * apart),
    )


def hop(clock: Clock, style: Style) -> Pose:
    """Hops on one leg."""
    angle = clock.angle(0.9, style)
    up = jnp.abs(jnp.sin(angle))
    low = jnp.square(1 - up)
    still = _still(clock, 0.0)
    return standing(clock)._replace(
        thigh=_sided(still + 0.35, 0.5 * low, style.side),
        knee=_sided(still + 1.7, 0.1 + 0.9 * low, style.side),
        upper_out=_both(0.5 + 0.5 * up),
        fore_out=_both(0.4 + 0.3 * up),
        fore=_both(still + 0.7),
        jump=0.32 * style.amplitude * up,
    )


def juggle(clock: Clock, style: Style) -> Pose:
    """Juggles three balls."""
    # a hand rises to throw inwards and sinks to catch further out, in time with the
    # three balls of `balls.juggled`
    angle = 3 * clock.angle(1.35, style) - 0.6 * PI
    return standing(clock)._replace(
        upper=_both(_still(clock, 0.25)),
        upper_out=_both(_still(clock, 0.2)),
        fore=_alternating(lambda a: 1.5 + 0.3 * jnp.sin(a), angle),
        fore_out=_alternating(lambda a: 0.1 + 0.3 * jnp.cos(a), angle),
    )


def dribble(clock: Clock, style: Style) -> Pose:
    """Dribbles a ball with the hand of its side."""
    down = 0.5 - 0.5 * jnp.cos(clock.angle(0.62, style))
    rest = standing(clock)
    upper, fore = _still(clock, 0.35), 1.75 - 0.85 * down
    return rest._replace(
        upper=_sided(upper, rest.upper[1], style.side),
        fore=_sided(fore, rest.fore[1] + 0.5, style.side),
        upper_out=_both(_still(clock, 0.3)),
        fore_out=_both(_still(clock, 0.25)),
        thigh=_both(0.35 + 0.05 * down),
        knee=_both(0.55 + 0.1 * down),
        lean=_still(clock, 0.3),
    )


def throw(clock: Clock, style: Style) -> Pose:
    """Throws a ball from the chest with both hands, once."""
    u = clock.progress(until_release(style))
    return standing(clock)._replace(
        upper=_both(0.15 + 1.45 * u),
        upper_out=_both(0.45 - 0.3 * u),
        fore=_both(2.1 - 0.5 * u),
        fore_out=_both(-0.3 + 0.25 * u),
        lean=0.2 * u,
        thigh=_sided(0.25 + 0.15 * u, -0.2 - 0.1 * u, style.side),
        knee=_both(0.15 + 0.1 * u),
    )


def until_release(style: Style) -> Style:
    """The style of the part of a throw until the ball leaves the hands."""
    return style._replace(length=style.length * 0.45)


def spin(clock: Clock, style: Style) -> Pose:
    """Turns on the spot, arms out."""
    turn = style.side * clock.angle(1.15, style)
    out = _both(_still(clock, 1.0) + 0.5 * style.route)
    return standing(clock)._replace(
        turn=turn, upper_out=out, fore_out=out + 0.1, fore=_both(_still(clock, 0.1))
    )
