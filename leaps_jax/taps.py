"""Taps: the tensors inside a model.

A *tap* is a named intermediate tensor; LEAPS taps what enters every norm layer. Taps
are captured by Flax itself (`capture_intermediates`), named by the path of the module
and listed in order of execution; a module that runs twice gives `name#1`, `name#2`.
The leading axis of a tap is the video and its last axis the channel.

>>> logits, taps = features(model, videos)                      # doctest: +SKIP
>>> taps["stage1/block0/norm_a"].shape                          # doctest: +SKIP
(1, 4, 80, 80, 54)
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from leaps_jax import video as video_lib
from leaps_jax.errors import UserError
from leaps_jax.model import Filter, Model, Moments
from leaps_jax.models.layers import INPUT_MOMENTS, NormLayer

# Attributes that tell of a layer where its tap has time; the tap has them too.
_TIME = ("time_axis", "time_steps", "class_tokens")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "known"],
    meta_fields=["name", *_TIME],
)
@dataclasses.dataclass(frozen=True)
class Tap:
    """One captured tensor.

    Attributes:
      name: path of the module, with the method where it is not `observe`.
      value: (b, ..., c).
      time_axis: the axis of `value` that is time, or None.
      time_steps: the number of time steps, where that axis is a sequence of tokens:
        class tokens, and then the tokens of one step after those of another.
      class_tokens: how many of them come first.
      known: moments that the layer has computed: values (c,), and relative to them the
        mean over all positions and perhaps the mean of squares, (b, c).
    """

    name: str
    value: jax.Array
    time_axis: int | None = None
    time_steps: int | None = None
    class_tokens: int = 1
    known: tuple[jax.Array, ...] = ()

    def mean(self) -> jax.Array:
        """μ(z): the mean over all positions, (b, c) in float32."""
        if self.known:
            centre, first, *_ = self.known
            return centre + first
        return mean_over_positions(self.value.astype(jnp.float32))

    def moments(self, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Means over all positions of z - `centre` and of its square, each (b, c).

        Args:
          centre: (c,).
        """
        if len(self.known) == 3:
            known_centre, first, second = self.known
            shift = known_centre - centre
            return first + shift, second + shift * (2 * first + shift)
        centred = self.value.astype(jnp.float32) - centre
        return mean_over_positions(centred), mean_over_positions(jnp.square(centred))

    def mean_by_time(self, cells: int = 1) -> jax.Array:
        """The mean over space at each time step, (b, t, k, c) in float32.

        Args:
          cells: means over each cell of a grid of `cells` by `cells`, k of them, where
            the positions are a grid of more; over all positions by default.
        """
        z = self.by_time().astype(jnp.float32)
        grid = _as_grid(z) if cells > 1 else None
        if grid is None:
            return z.reshape(*z.shape[:2], -1, z.shape[-1]).mean(2, keepdims=True)
        for axis in (3, 2):
            grid = _means_of_cells(grid, axis, min(cells, grid.shape[axis]))
        return grid.reshape(*z.shape[:2], -1, z.shape[-1])

    def by_time(self) -> jax.Array:
        """The tensor with its time first, (b, t, ..., c), without class tokens.

        >>> Tap("norm", jnp.zeros((2, 1 + 4 * 9, 8)), 1, time_steps=4).by_time().shape
        (2, 4, 9, 8)
        """
        assert self.time_axis is not None
        z = jnp.moveaxis(self.value, self.time_axis, 1)
        if self.time_steps is None:
            return z
        z = z[:, self.class_tokens :]
        return z.reshape(z.shape[0], self.time_steps, -1, *z.shape[2:])

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(1, self.value.ndim - 1))


def _as_grid(z: jax.Array) -> jax.Array | None:
    """Positions (b, t, ..., c) as (b, t, h, w, c) without a class token, or None."""
    if z.ndim == 5:
        return z
    if z.ndim == 4:
        for class_tokens in (0, 1):
            side = math.isqrt(z.shape[2] - class_tokens)
            if side > 1 and side * side == z.shape[2] - class_tokens:
                square = (*z.shape[:2], side, side, z.shape[-1])
                return z[:, :, class_tokens:].reshape(square)
    return None


def _means_of_cells(x: jax.Array, axis: int, cells: int) -> jax.Array:
    """Average pooling along an axis, to cells of equal length.

    A position on the border of two cells counts in both by its shares: positions are
    repeated until cells end between two of them. As a matrix product it would take
    longer: XLA transposes a feature around one.

    >>> _means_of_cells(jnp.array([0.0, 3.0, 6.0]), 0, 2).tolist()
    [1.0, 5.0]
    """
    n = math.lcm(x.shape[axis], cells)
    x = jnp.repeat(x, n // x.shape[axis], axis)
    split = (*x.shape[:axis], cells, n // cells, *x.shape[axis + 1 :])
    return x.reshape(split).mean(axis + 1)


def mean_over_positions(x: jax.Array) -> jax.Array:
    """The mean of (b, ..., c) over all axes but the first and the last."""
    axes = tuple(range(1, x.ndim - 1))
    if math.prod(x.shape[1:-1]) > _MANY:
        # in two steps: XLA for GPUs is slow where all axes but the channels are reduced
        x, axes = x.mean(axes[:-1]), (1,)
    return x.mean(axes)


_MANY = 4096  # positions


def apply(
    module: nn.Module,
    variables: Mapping[str, Any],
    video: jax.Array,
    tap_filter: Filter,
) -> tuple[jax.Array, dict[str, Tap]]:
    """Runs a module and returns (logits in float32, taps in order of execution).

    Args:
      module: the network.
      variables: its variables.
      video: (b, t, h, w, 3), normalised.
      tap_filter: chooses the taps.

    Raises:
      UserError: one of them is no array.
    """
    logits, taps = _apply_in_order(module, tap_filter, variables, video)
    return logits, {tap.name: tap for tap in taps}


# jit, so that all callers share one trace of a network
@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_in_order(module, tap_filter, variables, video):
    logits, taps, _ = apply_mutable(module, variables, video, tap_filter)
    return logits, list(taps.values())  # jit would sort a dict's keys


def apply_mutable(
    module: nn.Module,
    variables: Mapping[str, Any],
    video: jax.Array,
    tap_filter: Filter,
    mutable: Sequence[str] = (),
    **options: Any,
) -> tuple[jax.Array, dict[str, Tap], dict[str, Any]]:
    """`apply` for training, which also returns the `mutable` collections.

    `options` are passed to the module: `train` and `rngs`.
    """
    calls: list[tuple[tuple[str, ...], str, bool, dict[str, Any]]] = []

    def recording(m: nn.Module, method: str) -> bool:
        if not tap_filter(m, method):
            return False
        fields = {field: getattr(m, field) for field in _TIME if hasattr(m, field)}
        calls.append((m.path, method, isinstance(m, NormLayer), fields))
        return True

    logits, mutated = module.apply(
        variables,
        video,
        capture_intermediates=recording,
        mutable=["intermediates", *mutable],
        **options,
    )
    mutated = dict(mutated)
    tree = mutated.pop("intermediates", {})
    total = collections.Counter((path, method) for path, method, *_ in calls)
    seen: collections.Counter = collections.Counter()
    taps = {}
    for path, method, is_norm, fields in calls:
        node = functools.reduce(lambda node, key: node[key], path, tree)
        value = node[method][seen[path, method]]
        if is_norm and method == "observe" and INPUT_MOMENTS in node:
            fields["known"] = node[INPUT_MOMENTS][seen[path, method]]
        seen[path, method] += 1
        if is_norm and isinstance(value, tuple):
            continue  # a helper of the layer, which calls `observe` itself
        name = "/".join(path if method == "observe" else (*path, method))
        if not isinstance(value, jax.Array):
            raise UserError(
                f"tap_filter: {name} gives a {type(value).__name__}; choose methods"
                " that give one array"
            )
        if total[path, method] > 1:
            name += f"#{seen[path, method]}"
        if fields.get("time_axis") is None and value.ndim == 5:
            fields["time_axis"] = 1
        taps[name] = Tap(name, value, **fields)
    return logits.astype(jnp.float32), taps, mutated


def tap_names(model: Model) -> list[str]:
    """The names of a model's taps in order of execution; nothing is computed.

    >>> tap_names(model)[:2]                                    # doctest: +SKIP
    ['stem/norm', 'stage1/block0/norm_a']
    """
    return list(tap_shapes(model))


def tap_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape (1, ..., c) of each tap for one video, in order of execution.

    Nothing is computed. The model's variables may be shapes alone.

    >>> tap_shapes(model)["stem/norm"]                          # doctest: +SKIP
    (1, 4, 80, 80, 24)
    """
    spec, shapes = model.spec, {}
    shape = (1, spec.frames, spec.size, spec.size, 3)

    def run(variables, video):
        _, taps = apply(model.module, variables, video, model.tap_filter)
        shapes.update({name: tap.value.shape for name, tap in taps.items()})

    jax.eval_shape(run, model.variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    return shapes


def features(model: Model, videos: ArrayLike) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits and taps of videos.

    Args:
      model: the network.
      videos: (n, t, h, w, 3) pixels in [0, 1]; normalised inside by the model's spec
        and never clipped.

    Returns:
      Logits (n, classes), and the taps by name in order of execution, each
      (n, ..., c).

    Raises:
      UserError: the videos have another shape, or `tap_filter` chooses no arrays.

    >>> logits, taps = features(model, videos)                  # doctest: +SKIP
    """
    videos = jnp.asarray(videos)
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise UserError(f"videos of shape {videos.shape}: must be (n, t, h, w, 3)")
    normalized = video_lib.normalize(videos, model.spec)
    logits, taps = apply(model.module, model.variables, normalized, model.tap_filter)
    return logits, {name: tap.value for name, tap in taps.items()}


def predict(model: Model, videos: ArrayLike) -> jax.Array:
    """What a model sees in videos of any length and size.

    Args:
      model: the network.
      videos: (n, t, h, w, 3) pixels in [0, 1]. Frames are taken evenly and resized
        where the model takes others.

    Returns:
      Logits (n, classes), float32.

    >>> model.spec.classes[predict(model, videos)[0].argmax()]  # doctest: +SKIP
    'jumping jack'
    """
    return _predict(model.module, model.spec, model.variables, jnp.asarray(videos))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(module, spec, variables, videos):
    shown = video_lib.fit(videos.astype(jnp.float32), spec.frames, spec.size)
    logits = module.apply(variables, video_lib.normalize(shown, spec))
    return logits.astype(jnp.float32)


def target_moments(model: Model) -> Moments:
    """Per tap, the mean and variance per channel that a natural video has.

    Batch norm keeps them as running statistics; any other tap takes them from
    `model.moments`.

    Raises:
      UserError: the model has neither.
    """
    stats = model.variables.get("batch_stats", {})
    found = {}
    for name in tap_names(model):
        node: Any = stats
        for key in name.split("#")[0].split("/"):
            node = node.get(key, {}) if isinstance(node, Mapping) else {}
        if "mean" in node and "var" in node:
            found[name] = (node["mean"], node["var"])
        elif model.moments is not None and name in model.moments:
            found[name] = model.moments[name]
        else:
            raise UserError(
                f"verifier={model.spec.name}: no batch norm and no estimated moments"
                f" for {name}; estimate them from clips with estimate_moments"
            )
    return found


def estimate_moments(
    model: Model,
    videos: np.ndarray,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Moments:
    """Mean and variance per channel of every tap over natural clips.

    Args:
      model: the network.
      videos: (n, t, h, w, 3) pixels in [0, 1].
      batch: clips on the device at a time.
      progress: called with the number of clips done so far.

    Returns:
      {tap: (mean (c,), variance (c,))}, for `dataclasses.replace(model, moments=...)`.

    >>> moments = estimate_moments(model, clips)                # doctest: +SKIP
    >>> verifier = dataclasses.replace(model, moments=moments)  # doctest: +SKIP
    """
    names = tap_names(model)
    sums: dict[str, Any] = {}
    for start in range(0, len(videos), batch):
        part = jnp.asarray(videos[start : start + batch])
        first, second = _moment_sums(
            model.module, model.tap_filter, model.variables, part, model.spec
        )
        for name, a, b in zip(names, first, second, strict=True):
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + a, old[1] + b)
        if progress:
            jax.block_until_ready(sums)  # else what is queued would count
            progress(start + len(part))
    n = len(videos)
    return {
        name: (first / n, second / n - (first / n) ** 2)
        for name, (first, second) in sums.items()
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _moment_sums(module, tap_filter, variables, videos, spec):
    normalized = video_lib.normalize(videos, spec)
    _, taps = apply(module, variables, normalized, tap_filter)
    values = [tap.value.astype(jnp.float32) for tap in taps.values()]
    axes = [tap.positions for tap in taps.values()]
    first = [v.mean(a).sum(0) for v, a in zip(values, axes, strict=True)]
    second = [jnp.square(v).mean(a).sum(0) for v, a in zip(values, axes, strict=True)]
    return first, second
