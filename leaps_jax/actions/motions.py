"""What an articulated figure does in each class: its joints over time.

A person stands at the origin, in metres: x to their left, y up, z where they face. A
limb hangs down at angle 0; `flex` swings it forward and `out` away from the body, so
that pi points straight up by either. Feet stay on the floor unless the person jumps.

A class whose motion is another's played backwards *is* that motion at reversed times:
the frames of the two have one distribution, and only their order tells them apart.

>>> REVERSED["sitting down"], MIRRORED["waving left hand"]
('standing up', 'waving right hand')
"""

import dataclasses
import functools
from collections.abc import Callable
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
BALLS = 3
PI = jnp.pi


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


def _both(x: jax.Array) -> jax.Array:
    return jnp.stack([x, x])


def _alternating(x: Callable[[jax.Array], jax.Array], angle: jax.Array) -> jax.Array:
    return jnp.stack([x(angle), x(angle + PI)])


def _sided(left: jax.Array, right: jax.Array, side: jax.Array) -> jax.Array:
    """(left, right), exchanged when side is negative."""
    return jnp.where(side > 0, jnp.stack([left, right]), jnp.stack([right, left]))


def _walk(clock: Clock, style: Style) -> Pose:
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


def _run(clock: Clock, style: Style) -> Pose:
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


def _still(clock: Clock, value: float) -> jax.Array:
    return jnp.full_like(clock.time, value)


def _sit_down(clock: Clock, style: Style) -> Pose:
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


def _raise_arms(clock: Clock, style: Style) -> Pose:
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


def _wave_left(clock: Clock, style: Style) -> Pose:
    return _waving(clock, style, left=True, right=False)


def _wave_right(clock: Clock, style: Style) -> Pose:
    return _waving(clock, style, left=False, right=True)


def _wave_both(clock: Clock, style: Style) -> Pose:
    return _waving(clock, style, left=True, right=True)


def _jumping_jack(clock: Clock, style: Style) -> Pose:
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


def _squat(clock: Clock, style: Style) -> Pose:
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


def _bend(clock: Clock, style: Style) -> Pose:
    down = 0.5 - 0.5 * jnp.cos(clock.angle(1.3, style))
    return standing(clock)._replace(
        thigh=_both(0.22 * down),
        lean=1.75 * style.amplitude.clip(0.9, 1.1) * down,
        upper=_both(0.35 * down),
        fore=_both(0.2 + 0.1 * down),
        fixed_feet=jnp.ones(()),
    )


def _box(clock: Clock, style: Style) -> Pose:
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


def _kick(clock: Clock, style: Style) -> Pose:
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


def _clap(clock: Clock, style: Style) -> Pose:
    apart = 0.5 - 0.5 * jnp.cos(clock.angle(0.45, style))
    return standing(clock)._replace(
        upper=_both(_still(clock, 0.75)),
        upper_out=_both(0.1 + 0.5 * apart),
        fore=_both(_still(clock, 1.75)),
        fore_out=_both(-0.72 + 1.25 * style.amplitude * apart),
    )


def _hop(clock: Clock, style: Style) -> Pose:
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


def _juggle(clock: Clock, style: Style) -> Pose:
    # a hand rises to throw inwards and sinks to catch further out, in time with the
    # three balls of `_juggled`
    angle = 3 * clock.angle(1.35, style) - 0.6 * PI
    return standing(clock)._replace(
        upper=_both(_still(clock, 0.25)),
        upper_out=_both(_still(clock, 0.2)),
        fore=_alternating(lambda a: 1.5 + 0.3 * jnp.sin(a), angle),
        fore_out=_alternating(lambda a: 0.1 + 0.3 * jnp.cos(a), angle),
    )


def _dribble(clock: Clock, style: Style) -> Pose:
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


def _throw(clock: Clock, style: Style) -> Pose:
    u = clock.progress(_until_release(style))
    return standing(clock)._replace(
        upper=_both(0.15 + 1.45 * u),
        upper_out=_both(0.45 - 0.3 * u),
        fore=_both(2.1 - 0.5 * u),
        fore_out=_both(-0.3 + 0.25 * u),
        lean=0.2 * u,
        thigh=_sided(0.25 + 0.15 * u, -0.2 - 0.1 * u, style.side),
        knee=_both(0.15 + 0.1 * u),
    )


def _until_release(style: Style) -> Style:
    return style._replace(length=style.length * 0.45)


def _spin(clock: Clock, style: Style) -> Pose:
    turn = style.side * clock.angle(1.15, style)
    out = _both(_still(clock, 1.0) + 0.5 * style.route)
    return standing(clock)._replace(
        turn=turn, upper_out=out, fore_out=out + 0.1, fore=_both(_still(clock, 0.1))
    )


# Balls: (joints, clock, style) -> positions (balls, t, 3) and radii (balls,).


def _no_balls(joints: jax.Array, clock: Clock, style: Style):
    return jnp.zeros((BALLS, len(clock.time), 3)), jnp.zeros(BALLS)


def _one_ball(position: jax.Array, radius: float):
    rest = jnp.zeros((BALLS - 1, *position.shape))
    return jnp.concatenate([position[None], rest]), jnp.zeros(BALLS).at[0].set(radius)


def _juggled(joints: jax.Array, clock: Clock, style: Style):
    left, right = _at(joints, "left hand"), _at(joints, "right hand")
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


def _dribbled(joints: jax.Array, clock: Clock, style: Style):
    hand = jnp.where(
        style.side > 0, _at(joints, "left hand"), _at(joints, "right hand")
    )
    # at the hand when the forearm is high, at the floor when it is low
    bounce = (clock.angle(0.62, style) / (2 * PI)) % 1.0
    height = jnp.square(2 * bounce - 1)[:, None]  # 1 at the hand, 0 at the floor
    floor = 0.13
    y = floor + (hand[:, 1:2] - 0.16 - floor) * (1 - jnp.square(1 - height))
    ball = jnp.concatenate([hand[:, :1], y, hand[:, 2:] + 0.05], axis=1)
    return _one_ball(ball, 0.125)


def _thrown(joints: jax.Array, clock: Clock, style: Style):
    hands = (_at(joints, "left hand") + _at(joints, "right hand")) / 2
    held = hands + jnp.array([0.0, 0.0, 0.12])
    until = _until_release(style)
    release = (until.start + 0.75 * until.length) * clock.total
    since = jnp.maximum(clock.time - release, 0.0)[:, None]
    flying = clock.time > release
    order = jnp.argsort(clock.time)
    at_release = functools.partial(jnp.interp, release, clock.time[order])
    origin = jax.vmap(at_release, 1)(held[order])
    path = since * jnp.array([0.0, 1.2, 3.2]) * style.tempo
    path += jnp.square(since) * jnp.array([0.0, -4.9, 0.0])
    ball = jnp.where(flying[:, None], origin + path, held)
    return _one_ball(ball.at[:, 1].max(0.125), 0.125)  # then it rolls


def _at(joints: jax.Array, name: str) -> jax.Array:
    return joints[:, JOINTS.index(name)]


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
    balls: Callable = _no_balls
    facing: tuple[float, float] = (0, 35)
    reversed: bool = False
    heading: int = 0
    seat: bool = False


MOTIONS = (
    Motion("walking left", _walk, facing=(65, 105), heading=-1),
    Motion("walking right", _walk, facing=(65, 105), heading=1),
    Motion("running left", _run, facing=(65, 105), heading=-1),
    Motion("running right", _run, facing=(65, 105), heading=1),
    Motion("sitting down", _sit_down, facing=(35, 85), seat=True),
    Motion("standing up", _sit_down, facing=(35, 85), seat=True, reversed=True),
    Motion("raising both arms", _raise_arms),
    Motion("lowering both arms", _raise_arms, reversed=True),
    Motion("waving left hand", _wave_left),
    Motion("waving right hand", _wave_right),
    Motion("waving both hands", _wave_both),
    Motion("jumping jack", _jumping_jack),
    Motion("squatting", _squat, facing=(0, 75)),
    Motion("bending", _bend, facing=(40, 95)),
    Motion("boxing", _box, facing=(25, 85)),
    Motion("kicking", _kick, facing=(35, 95)),
    Motion("clapping", _clap),
    Motion("hopping", _hop, facing=(0, 75)),
    Motion("juggling balls", _juggle, _juggled),
    Motion("dribbling a basketball", _dribble, _dribbled, facing=(10, 70)),
    Motion("throwing", _throw, _thrown, facing=(50, 95)),
    Motion("catching", _throw, _thrown, facing=(50, 95), reversed=True),
    Motion("spinning", _spin),
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
    pose = jax.lax.switch(label, [motion.pose for motion in MOTIONS], clock, style)
    joints = skeleton(body, pose)
    ways = list(dict.fromkeys(motion.balls for motion in MOTIONS))
    way = jnp.array([ways.index(motion.balls) for motion in MOTIONS])[label]
    balls, radii = jax.lax.switch(way, ways, joints, clock, style)
    low, high = jnp.array([motion.facing for motion in MOTIONS])[label]
    yaw = style.side * jnp.deg2rad(low + (high - low) * facing) + pose.turn
    seat = _seated(body) - jnp.array([0.0, 0.16, 0.05])
    return Action(
        _turned(joints, yaw[:, None]),
        _turned(balls, yaw),
        radii,
        _turned(seat, yaw[0]),
        jnp.array([motion.seat for motion in MOTIONS])[label],
    )


def _seated(body: Body) -> jax.Array:
    """(3,) where the pelvis of a person is who sits."""
    clock = Clock(jnp.zeros(1), jnp.ones(()))
    done = Style(*[jnp.ones(())] * len(Style._fields))._replace(start=jnp.array(-2.0))
    return _at(skeleton(body, _sit_down(clock, done)), "pelvis")[0]


def _turned(points: jax.Array, yaw: jax.Array) -> jax.Array:
    x, y, z = jnp.moveaxis(points, -1, 0)
    sin, cos = jnp.sin(yaw), jnp.cos(yaw)
    return jnp.stack([x * cos + z * sin, y + 0 * yaw, z * cos - x * sin], -1)


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
        _at(joints, f"{s} {p}") for s in ("left", "right") for p in ("ankle", "toe")
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
