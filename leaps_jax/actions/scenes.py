"""Renders synthetic actions: a person, a place, a camera and things in the way.

Everything solid is a capsule: a ball that is dragged from one point to another. A
frame is the capsules from near to far, each covering what is behind it, over a wall
and a floor with a 1/f texture. All of it is drawn from one key.

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
from leaps_jax.actions.motions import JOINTS, Body, Clock, Style

TEXTURE = 64  # texels along a side of the background


class Scene(NamedTuple):
    """A clip and its ground truth.

    Attributes:
      video: (t, h, w, 3) pixels in [0, 1].
      label: index into `motions.CLASSES`.
      joints: (t, joints, 2) x and y in pixels, of `motions.JOINTS`.
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


class Capsules(NamedTuple):
    """n capsules over time: ends (n, t, 3), radii (n, 2), colours (n, 3).

    `own` is 1 for the person and what they handle, 0 for the rest.
    """

    start: jax.Array
    end: jax.Array
    radii: jax.Array
    colours: jax.Array
    own: jax.Array


class Camera(NamedTuple):
    """Where it stands and how it moves: scalars, and `pan`, `pan_speed` (2,)."""

    distance: jax.Array
    elevation: jax.Array
    height: jax.Array
    focal: jax.Array  # frame heights per unit of x / depth
    roll: jax.Array
    roll_speed: jax.Array
    zoom_speed: jax.Array
    pan: jax.Array
    pan_speed: jax.Array


def _uniform(key, low, high, shape=()):
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def draw_body(key: jax.Array) -> Body:
    """A person of 1.5 to 1.95 m."""
    scale, build, legs = jax.random.uniform(key, (3,), minval=-1.0)
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
    keys = jax.random.split(key, 7)
    start = _uniform(keys[5], -0.05, 0.2)
    return Style(
        tempo=_uniform(keys[0], 0.85, 1.2),
        phase=_uniform(keys[1], 0.0, 1.0),
        amplitude=_uniform(keys[2], 0.85, 1.15),
        side=jnp.where(jax.random.bernoulli(keys[3]), 1.0, -1.0),
        route=_uniform(keys[4], 0.0, 1.0),
        start=start,
        length=_uniform(keys[6], 0.65, 1.0 - start),
    )


def draw_camera(key: jax.Array) -> Camera:
    """Eye level, 4 to 7 m away; drifts, zooms and turns a little."""
    keys = jax.random.split(key, 9)
    distance = _uniform(keys[0], 4.0, 7.0)
    share = _uniform(keys[1], 0.52, 0.75)  # of the frame, for 1.75 m
    return Camera(
        distance=distance,
        elevation=_uniform(keys[2], 0.0, 0.3),
        height=_uniform(keys[3], 0.95, 1.1),
        focal=share * distance / 1.75,
        roll=_uniform(keys[4], -0.06, 0.06),
        roll_speed=_uniform(keys[5], -0.05, 0.05),
        zoom_speed=_uniform(keys[6], -0.08, 0.08),
        pan=_uniform(keys[7], -0.08, 0.08, (2,)) * jnp.array([1.0, 0.5]),
        pan_speed=_uniform(keys[8], -0.05, 0.05, (2,)),
    )


def project(camera: Camera, points: jax.Array, time: jax.Array):
    """World points (..., t, 3) to the screen.

    Returns:
      (..., t, 2) x to the right and y down in frame heights from the middle, and the
      scale (..., t) in frame heights a metre.
    """
    flat, scale = _seen_upright(camera, points)
    zoom = 1 + camera.zoom_speed * time
    rolled = _rolled(camera, flat * zoom[:, None], time, 1.0)
    return rolled + _panned(camera, time), scale * zoom


def _seen_upright(camera: Camera, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`project` for a camera that stands still and level."""
    x, y, z = jnp.moveaxis(points, -1, 0)
    y = y - camera.height
    sin, cos = jnp.sin(camera.elevation), jnp.cos(camera.elevation)
    y, z = y * cos - z * sin, z * cos + y * sin
    scale = camera.focal / jnp.maximum(camera.distance - z, 0.5)
    return jnp.stack([x, -y], -1) * scale[..., None], scale


def _rolled(camera: Camera, points, time, sign):
    roll = sign * (camera.roll + camera.roll_speed * time)
    sin, cos = jnp.sin(roll), jnp.cos(roll)
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([x * cos - y * sin, x * sin + y * cos], -1)


def _panned(camera: Camera, time):
    return camera.pan + camera.pan_speed * time[:, None]


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
    keys = jax.random.split(key, 7)
    clothes = _colour(keys[0], (3,))
    tone = _uniform(keys[1], 0.0, 1.0)
    skin = jnp.array([0.93, 0.75, 0.62]) * (1 - tone) + tone * jnp.array(
        [0.38, 0.24, 0.16]
    )
    hair = _uniform(keys[2], 0.05, 0.5) * jnp.array([1.0, 0.75, 0.5])
    sleeve = jnp.where(jax.random.bernoulli(keys[3]), clothes[0], skin)
    return jnp.stack([clothes[0], clothes[1], skin, sleeve, clothes[2], hair])


def _colour(key, shape):
    """Saturated or grey, dark or light."""
    hue, saturation, value = jnp.moveaxis(jax.random.uniform(key, (*shape, 3)), -1, 0)
    value, saturation = 0.15 + 0.8 * value, 0.9 * saturation
    wheel = jnp.abs((hue[..., None] * 6 - jnp.array([0.0, 2.0, 4.0])) % 6 - 3) - 1
    tint = jnp.clip(wheel, 0, 1)
    return value[..., None] * (1 - saturation[..., None] * (1 - tint))


def person(action: motions.Action, colours: jax.Array) -> Capsules:
    """The capsules of a body, its hair, balls and stool."""
    index = jnp.array([[JOINTS.index(a), JOINTS.index(b)] for a, b, *_ in _BONES])
    joints = jnp.moveaxis(action.joints, 1, 0)  # j t 3
    start, end = joints[index[:, 0]], joints[index[:, 1]]
    radii = jnp.array([[r0, r1] for _, _, r0, r1, _ in _BONES])
    parts = jnp.array([_PARTS.index(part) for *_, part in _BONES])
    body = Capsules(start, end, radii, colours[parts], jnp.ones(len(_BONES)))
    return _joined(body, _hair(joints, colours), _balls(action), _stool(action))


def _hair(joints: jax.Array, colours: jax.Array) -> Capsules:
    """A cap on the back of the head, so that one sees which way it faces."""
    head = joints[JOINTS.index("head")]
    across = (
        joints[JOINTS.index("left shoulder")] - joints[JOINTS.index("right shoulder")]
    )
    forward = jnp.cross(across, jnp.array([0.0, 1.0, 0.0]))
    forward /= jnp.linalg.norm(forward, axis=-1, keepdims=True)
    cap = head + jnp.array([0.0, 0.05, 0.0]) - 0.05 * forward
    return _single(cap, cap, 0.115, colours[_PARTS.index("hair")], 1.0)


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
    return _joined(
        _single(*wide, 0.06 * there, colour, 0.0),
        _single(foot, seat, 0.08 * there, colour, 0.0),
    )


def _single(start, end, radius, colour, own) -> Capsules:
    return Capsules(
        start[None],
        end[None],
        jnp.full((1, 2), radius),
        jnp.asarray(colour)[None],
        jnp.full(1, own),
    )


def _joined(*parts: Capsules) -> Capsules:
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def clutter(key: jax.Array, time: jax.Array) -> Capsules:
    """Two things that drift behind or beside the person, and a pole before them."""
    keys = jax.random.split(key, 8)
    place = _uniform(keys[0], -1.0, 1.0, (2, 3)) * jnp.array([1.5, 0.9, 0.6])
    place += jnp.array([0.0, 1.0, -1.2])
    velocity = _uniform(keys[1], -0.9, 0.9, (2, 3)) * jnp.array([1.0, 0.5, 0.3])
    start = place[:, None] + velocity[:, None] * time[:, None]
    length = _uniform(keys[2], -0.4, 0.4, (2, 1, 3))
    there = jax.random.bernoulli(keys[3], 0.5, (2, 1))
    radii = _uniform(keys[4], 0.04, 0.18, (2, 1)) * there * jnp.ones((2, 2))
    things = Capsules(
        start, start + length, radii, _colour(keys[5], (2,)), jnp.zeros(2)
    )
    x, speed, width, there = jax.random.uniform(keys[6], (4,))
    foot = jnp.stack(
        [2.4 * x - 1.2 + 0.6 * (speed - 0.5) * time, 0 * time, 0 * time + 0.9], -1
    )
    pole = _single(
        foot,
        foot + jnp.array([0.0, 2.6, 0.0]),
        (0.03 + 0.05 * width) * (there < 0.25),
        _colour(keys[7], ()),
        0.0,
    )
    return _joined(things, pole)


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
    moved = pixels - _panned(camera, time)[:, None, None]
    place = jax.vmap(lambda p, t: _rolled(camera, p, t, -1.0))(moved, time) / zoom
    texture = _one_over_f(keys[0])
    far = -_uniform(keys[1], 1.5, 4.0)
    corner, _ = _seen_upright(camera, jnp.array([0.0, 0.0, 1.0]) * far)
    below = place[..., 1:] - corner[1]
    is_floor = jnp.clip(below * 60 + 0.5, 0, 1)
    # the floor's texture shrinks with distance, as a plane's does
    depth = 1 / (0.12 + jnp.maximum(below, 0.0))
    spot = jnp.where(
        is_floor > 0.5,
        jnp.concatenate([place[..., :1] * depth, depth], -1) * 0.5,
        place,
    )
    colours = _colour(keys[2], (4,))
    grey = colours.mean(-1, keepdims=True)
    colours = grey + (colours - grey) * _uniform(keys[5], 0.0, 1.0)
    shade = _uniform(keys[3], -0.3, 0.3, (2,))
    strength = _uniform(keys[4], 0.05, 0.6, (2,))
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


def paint(
    capsules: Capsules,
    camera: Camera,
    time: jax.Array,
    pixels: jax.Array,
    behind: jax.Array,
    light: jax.Array,
):
    """Draws capsules over a background, near before far.

    Returns:
      Video (t, h, w, 3), the share of the person (t, h, w), and how far the person's
      points move (t, h, w, 2) until the next frame, in frame heights.
    """
    start, scale0 = project(camera, capsules.start, time)  # n t 2, n t
    end, scale1 = project(camera, capsules.end, time)
    radius0, radius1 = scale0 * capsules.radii[:, :1], scale1 * capsules.radii[:, 1:]
    nearness = scale0 + scale1
    order = jnp.argsort(-nearness, axis=0)  # n t

    def sorted_by_depth(x):
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=0)

    def next_frame(x):
        return jnp.concatenate([x[:, 1:], x[:, -1:]], 1) - x

    def over_time(x):
        return jnp.broadcast_to(x[:, None], (len(x), len(time), *x.shape[1:]))

    pixel = pixels[1, 0, 1] - pixels[0, 0, 1]
    rows = jax.tree.map(
        sorted_by_depth,
        (
            start,
            end,
            radius0,
            radius1,
            over_time(capsules.colours),
            over_time(capsules.own),
            next_frame(start),
            next_frame(end),
        ),
    )

    def layer(carry, row):
        video, figure, flow, left = carry
        a, b, r0, r1, colour, own, move0, move1 = (
            x[:, None, None] for x in row
        )  # t 1 1 ...
        axis = b - a
        along = ((pixels - a) * axis).sum(-1) / jnp.maximum((axis * axis).sum(-1), 1e-9)
        along = jnp.clip(along, 0, 1)[..., None]
        radius = (r0 + (r1 - r0) * along[..., 0])[..., None]
        offset = pixels - (a + axis * along)
        distance = jnp.sqrt((offset * offset).sum(-1, keepdims=True) + 1e-12)
        cover = jnp.clip((radius - distance) / pixel + 0.5, 0, 1) * (radius > 0)
        normal = offset / jnp.maximum(radius, 1e-6)
        up = jnp.sqrt(jnp.maximum(1 - (normal * normal).sum(-1, keepdims=True), 0.0))
        lit = normal[..., :1] * light[0] + normal[..., 1:] * light[1] + up * light[2]
        shaded = colour * (0.5 + 0.6 * jnp.maximum(lit, 0.0))
        seen = left * cover
        return (
            video + seen * shaded,
            figure + seen[..., 0] * own,
            flow + seen * own[..., None] * (move0 + (move1 - move0) * along),
            left - seen,
        ), None

    blank = jnp.zeros(behind.shape[:-1])
    first = (
        jnp.zeros_like(behind),
        blank,
        jnp.zeros((*blank.shape, 2)),
        jnp.ones((*blank.shape, 1)),
    )
    (video, figure, flow, left), _ = jax.lax.scan(layer, first, rows)
    return video + left * behind, figure, flow


def _shadow(action: motions.Action, camera: Camera, time, pixels) -> jax.Array:
    """(t, h, w, 1): how much light a soft spot under the person takes away."""
    under = action.joints[:, JOINTS.index("pelvis")] * jnp.array([1.0, 0.0, 1.0])
    spot, scale = project(camera, under, time)
    away = (pixels - spot[:, None, None]) / scale[:, None, None, None]
    flat = away * jnp.array([2.2, 6.0])  # a circle on the floor, seen from the side
    return 0.45 * jnp.exp(-jnp.square(flat).sum(-1, keepdims=True))


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
    camera = draw_camera(keys[0])
    action = motions.perform(
        label,
        draw_body(keys[1]),
        draw_style(keys[2]),
        _uniform(keys[3], 0.0, 1.0),
        clock,
    )
    spot = _uniform(keys[4], -1.0, 1.0, (3,)) * jnp.array([0.25, 0.0, 0.3])
    action = action._replace(
        joints=action.joints + spot, balls=action.balls + spot, seat=action.seat + spot
    )
    steps = (jnp.arange(size) + 0.5) / size - 0.5
    pixels = jnp.stack(jnp.meshgrid(steps, steps), -1)  # h w (x, y)
    behind = background(keys[5], camera, drift, pixels)
    behind = jnp.clip(behind, 0, 1) * (1 - _shadow(action, camera, drift, pixels))
    capsules = _joined(person(action, draw_colours(keys[6])), clutter(keys[7], drift))
    angle, grain, gain = jax.random.uniform(keys[8], (3,), minval=-1.0)
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
