"""A loss for transformers: tokens must tell where the joints of a figure are.

The parameters of a training keep the linear map of this loss beside the network's.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from leaps_jax import taps
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.taps import Tap

HEAD = "hints"  # the name of the linear map among the parameters


def hint_loss(
    head: Mapping[str, jax.Array], tapped: Mapping[str, Tap], joints: jax.Array
) -> jax.Array:
    """How badly a linear map of the last layer's tokens tells the joints of a figure.

    Every token is asked which joints lie in it, and how they move. Zero for a perfect
    answer, one for none.

    Args:
      head: "kernel" (c, joints + 2) and "bias" of the linear map.
      tapped: taps of the network.
      joints: (b, t, joints, 2) x and y in frame sizes.
    """
    tokens = _grid_tokens(tapped)
    b, t, n, _ = tokens.shape
    side = math.isqrt(n)
    at = joints.reshape(b, t, -1, *joints.shape[2:]).mean(2) * side  # b t j 2 in cells
    cells = jnp.stack(jnp.meshgrid(*[jnp.arange(side) + 0.5] * 2), -1).reshape(n, 2)
    away = cells[:, None] - at[:, :, None]  # b t n j 2
    near = jnp.exp(-jnp.square(away).sum(-1))
    speed = jnp.gradient(at, axis=1)
    motion = jnp.einsum("btnj,btjd->btnd", near, speed)
    motion /= near.sum(-1, keepdims=True) + 0.1
    answer = tokens @ head["kernel"] + head["bias"]
    errors = [
        jnp.square(predicted - target).mean() / (jnp.square(target).mean() + 1e-6)
        for predicted, target in (
            (answer[..., :-2], near),
            (answer[..., -2:], motion),
        )
    ]
    return sum(errors, start=jnp.zeros(())) / len(errors)


def _grid_tokens(tapped: Mapping[str, Tap]) -> jax.Array:
    """The last tap that is a square grid at every time, (b, t, n, c) in float32."""
    grids = []
    for tap in tapped.values():
        if tap.time_axis is None:
            continue
        z = tap.by_time()
        z = z.reshape(*z.shape[:2], -1, z.shape[-1])
        if math.isqrt(z.shape[2] - 1) ** 2 == z.shape[2] - 1:  # a class token first
            z = z[:, :, 1:]
        if z.shape[2] > 1 and math.isqrt(z.shape[2]) ** 2 == z.shape[2]:
            grids.append(z.astype(jnp.float32))
    if not grids:
        raise UserError("hints: this model has no square grid of tokens at every time")
    return grids[-1]


def with_head(params: Mapping[str, Any], model: Model, joints: int) -> Any:
    """Parameters with a linear map of zeros for `hint_loss`."""
    spec = model.spec
    video = jnp.zeros((1, spec.frames, spec.size, spec.size, 3))

    def width(variables, video):
        tapped = taps.apply(model.module, variables, video, model.tap_filter)[1]
        return _grid_tokens(tapped)

    channels = jax.eval_shape(width, model.variables, video).shape[-1]
    outputs = joints + 2
    head = {"kernel": jnp.zeros((channels, outputs)), "bias": jnp.zeros(outputs)}
    return {**params, HEAD: head}


def without_head(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the network alone."""
    return {name: p for name, p in params.items() if name != HEAD}
