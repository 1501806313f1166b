"""Objectives that look at one part of a model: a channel, a neuron, a layer.

Each is a term without a class; they add and scale as all objectives do:

>>> objective = channel("stem/norm", 3) + 0.5 * neuron(-1, 7, position=(2, 4, 4))
>>> list(objective.weights)
['channel:stem/norm:3', 'neuron:-1:7:2,4,4']

A tap is addressed by its name or by its number in order of execution, from 0, or from
-1 for the last; `lj.tap_shapes(model)` and `leaps-jax models NAME` list them. After
C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill 2017
(doi 10.23915/distill.00007).
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from leaps_jax.errors import UserError, nearest
from leaps_jax.model import Model
from leaps_jax.taps import Tap, tap_shapes
from leaps_jax.terms import Context, Objective, term


def channel(tap: str | int, index: int) -> Objective:
    """The negated mean of a channel over all positions.

    Args:
      tap: its name or number.
      index: of the channel, from 0.

    Raises:
      UserError: the model has no such tap or channel; raised when the model is known.

    >>> channel(-1, 5).weights
    {'channel:-1:5': 1.0}
    """
    name = f"channel:{tap}:{index}"

    def loss(context: Context) -> jax.Array:
        found = _found(name, tap, context)
        _check_index(name, found, index)
        return -found.mean()[:, index]

    return term(name, loss, uses=["tap"])


def neuron(
    tap: str | int, index: int, position: Sequence[int] | None = None
) -> Objective:
    """A channel at one position, negated.

    Args:
      tap: its name or number.
      index: of the channel, from 0.
      position: (t, h, w) in the tap's own grid, or as many numbers as the tap has axes
        between video and channel; the middle by default.

    Raises:
      UserError: the model has no such tap, channel or position; raised when the model
        is known.

    >>> neuron("stem/norm", 5, (0, 8, 8)).weights
    {'neuron:stem/norm:5:0,8,8': 1.0}
    """
    name = f"neuron:{tap}:{index}"
    if position is not None:
        position = tuple(position)  # arrays could not be told from others
        name += ":" + ",".join(map(str, position))

    def loss(context: Context) -> jax.Array:
        found = _found(name, tap, context)
        _check_index(name, found, index)
        sizes = found.value.shape[1:-1]
        place = tuple(n // 2 for n in sizes) if position is None else position
        if len(place) != len(sizes) or not all(
            0 <= at < size for at, size in zip(place, sizes, strict=True)
        ):
            last = ",".join(str(size - 1) for size in sizes)
            what = f"{found.name} has positions up to {last}"
            raise UserError(f"{name}: {what}; give {len(sizes)} numbers from 0")
        return -found.value[(slice(None), *place, index)].astype(jnp.float32)

    return term(name, loss, uses=["tap"])


def direction(tap: str | int, vector: ArrayLike, cosine: float = 0.0) -> Objective:
    """The negated mean over all positions of z·v, with v of length 1.

    A direction that a probe, a concept vector or a sparse autoencoder found; another
    one of the same tap needs a name of its own: `direction(...).named("up")`.

    Args:
      tap: its name or number.
      vector: (c,) of which only the direction counts.
      cosine: at each position, z·v is multiplied by max(0.1, cos(z, v)) to this power,
        so that features point that way rather than grow.

    Raises:
      UserError: the vector is no direction, or the model has no such tap, or one of
        other channels; the latter are raised when the model is known.

    >>> direction("stem/norm", [0.0, 1.0, 1.0]).weights
    {'direction:stem/norm': 1.0}
    """
    name = f"direction:{tap}"
    values = np.asarray(vector, np.float32)
    length = np.linalg.norm(values)
    if values.ndim != 1 or not 0 < length < np.inf:
        what = f"vector of shape {values.shape}" if values.ndim != 1 else "vector"
        raise UserError(f"{name}: {what}: must be (c,), finite and not all 0")
    unit = tuple((values / length).tolist())  # numbers are part of the compiled step

    def loss(context: Context) -> jax.Array:
        found = _found(name, tap, context)
        if len(unit) != found.value.shape[-1]:
            what = f"{found.name} has {found.value.shape[-1]} channels"
            raise UserError(f"{name}: vector of {len(unit)} numbers, and {what}")
        if not cosine:
            return -found.mean() @ jnp.array(unit)
        z = found.value.astype(jnp.float32)
        along = z @ jnp.array(unit)
        share = along / jnp.sqrt(jnp.square(z).sum(-1) + 1e-12)
        return -(along * jnp.maximum(0.1, share) ** cosine).mean(found.positions)

    return term(name, loss, uses=["tap"])


def layer(tap: str | int) -> Objective:
    """The negated mean square of a tap: DeepDream makes what it sees stronger.

    Args:
      tap: its name or number.

    Raises:
      UserError: the model has no such tap; raised when the model is known.

    >>> layer(-1).weights
    {'layer:-1': 1.0}
    """
    name = f"layer:{tap}"

    def loss(context: Context) -> jax.Array:
        found = _found(name, tap, context)
        square = jnp.square(found.value.astype(jnp.float32))
        return -square.mean((*found.positions, -1))

    return term(name, loss, uses=["tap"])


def parse(text: str) -> Objective:
    """The objective of a text, which is also its name.

    channel:TAP:INDEX    neuron:TAP:INDEX    neuron:TAP:INDEX:T,H,W    layer:TAP

    Raises:
      UserError: the text is none of these.

    >>> parse("neuron:stem/norm:5:0,8,8").title
    'neuron:stem/norm:5:0,8,8'
    """
    kind, _, rest = text.partition(":")
    named, *numbers = rest.split(":")
    tap = int(named) if re.fullmatch(r"-?\d{1,9}", named) else named
    if tap != "" and all(re.fullmatch(r"\d{1,9}(,\d{1,9})*", n) for n in numbers):
        values = [[int(number) for number in n.split(",")] for n in numbers]
        match kind, values:
            case "channel", [[index]]:
                return channel(tap, index)
            case "neuron", [[index]]:
                return neuron(tap, index)
            case "neuron", [[index], position]:
                return neuron(tap, index, position)
            case "layer", []:
                return layer(tap)
    forms = "channel:TAP:INDEX, neuron:TAP:INDEX, neuron:TAP:INDEX:T,H,W, layer:TAP"
    raise UserError(f"objective={text!r}: write one of {forms}")


def named(text: str, model: Model) -> str:
    """The text of an objective of a model, with the name of its tap for its number.

    Raises:
      UserError: the text is wrong, or the model has no such tap, channel or position.

    >>> named("layer:-1", model)                                # doctest: +SKIP
    'layer:stage4/block1/norm_c'
    """
    ((_, looking),) = parse(text).terms
    shapes = tap_shapes(model)
    videos = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}

    def loss(videos: dict[str, jax.Array]) -> jax.Array:
        tapped = {name: Tap(name, videos[name]) for name in shapes}
        nothing = jnp.zeros((1,))
        return looking.loss(Context(nothing, nothing, nothing, tapped))

    jax.eval_shape(loss, videos)
    kind, tap, *rest = text.split(":")
    name = tap if tap in shapes else list(shapes)[int(tap)]
    return ":".join([kind, name, *rest])


def _found(name: str, tap: str | int, context: Context) -> Tap:
    """The tap of a name or a number.

    Raises:
      UserError: there is none.
    """
    taps = list(context.taps.values())
    if isinstance(tap, int):
        if not -len(taps) <= tap < len(taps):
            raise UserError(
                f"{name}: taps are 0 to {len(taps) - 1}, or -1 for the last; {_LISTED}"
            )
        return taps[tap]
    if tap not in context.taps:
        hint = nearest(tap, context.taps)
        raise UserError(f"{name}: no such tap; {hint} {_LISTED}")
    return context.taps[tap]


_LISTED = "lj.tap_shapes(model) or `leaps-jax models NAME` lists them"


def _check_index(name: str, tap: Tap, index: int) -> None:
    channels = tap.value.shape[-1]
    if not 0 <= index < channels:
        what = f"{tap.name} has channels 0 to {channels - 1}"
        raise UserError(f"{name}: {what}; give one of them")
