"""Solid things as capsules, and how a camera sees them.

A capsule is a ball that is dragged from one point to another. A frame is the capsules
from near to far, each covering what is behind it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from leaps_jax.actions.camera import Camera, project


class Capsules(NamedTuple):
    """n moving capsules: `start` and `end` (n, t, 3), radii (n, 2), colours (n, 3).

    `figure` is 1 for the person and what they handle, 0 for the rest.
    """

    start: jax.Array
    end: jax.Array
    radii: jax.Array
    colours: jax.Array
    figure: jax.Array


def single(start, end, radius, colour, figure) -> Capsules:
    """One moving capsule of constant radius: `start` and `end` (t, 3), colour (3,)."""
    return Capsules(
        start[None],
        end[None],
        jnp.full((1, 2), radius),
        jnp.asarray(colour)[None],
        jnp.full(1, figure),
    )


def joined(*parts: Capsules) -> Capsules:
    """Concatenates groups of capsules."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


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
            over_time(capsules.figure),
            next_frame(start),
            next_frame(end),
        ),
    )

    def layer(carry, row):
        video, figure, flow, left = carry
        a, b, r0, r1, colour, is_figure, move0, move1 = (
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
            figure + seen[..., 0] * is_figure,
            flow + seen * is_figure[..., None] * (move0 + (move1 - move0) * along),
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
