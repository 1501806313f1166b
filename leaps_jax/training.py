"""Trains a video classifier on clips that fit a person's memory.

An inversion shows nothing without trained weights; this makes some. Clips are uint8
arrays on the host; windows of frames are cut there in a background thread, and crops,
colours and the step itself run on the devices.
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import parallel, taps
from leaps_jax import video as video_lib
from leaps_jax.config import ModelSpec
from leaps_jax.errors import UserError
from leaps_jax.taps import Model


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every number of a training run.

    Attributes:
      steps: of the optimiser.
      batch: clips a step, over all devices.
      learning_rate: peak of AdamW after a warm-up of a twentieth of the steps,
        followed by a cosine to zero.
      weight_decay: on matrices and kernels, never on biases and norms.
      label_smoothing: of the cross-entropy.
      smallest_crop: side of the smallest random crop, as a share of the short side.
      colour: strength of the random changes of brightness, contrast and tint.
      flip: mirror half of the clips; off, since a mirror may change the class.
      views: windows of a clip, evenly spaced, whose predictions are averaged in the
        evaluation.
      evaluations: how often in a run the held-out clips are looked at.
      seed: of weights, order and augmentation.
    """

    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    smallest_crop: float = 0.6
    colour: float = 0.3
    flip: bool = False
    views: int = 4
    evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "views", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")


@dataclasses.dataclass(frozen=True)
class Clips:
    """Labelled clips: each (t, h, w, 3) uint8, labels (n,), and the class names."""

    videos: Sequence[np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a training stands: `accuracy` is None between two evaluations."""

    step: int
    loss: float
    train_accuracy: float
    accuracy: float | None
    model: Model


class TrainState(flax.struct.PyTreeNode):
    """Weights, running statistics and the state of the optimiser; the step counts."""

    params: Any
    statistics: Any
    optimizer: Any
    step: jax.Array


def random_view(
    key: jax.Array, video: jax.Array, extent: jax.Array, size: int, recipe: Recipe
) -> jax.Array:
    """One augmented clip: the same random crop and colours for all of its frames.

    Args:
      key: of this clip at this step.
      video: (t, h, w, 3) uint8; the picture fills the top-left `extent`.
      extent: (2,) height and width of the picture.
      size: of the result.
      recipe: strengths.

    Returns:
      (t, size, size, 3) float32 pixels in [0, 1].
    """
    keys = jax.random.split(key, 6)
    short = extent.min().astype(jnp.float32)
    side = short * jax.random.uniform(keys[0], minval=recipe.smallest_crop, maxval=1.0)
    aspect = jnp.exp(0.15 * jax.random.uniform(keys[1], minval=-1.0))
    box = jnp.minimum(side * jnp.stack([aspect, 1 / aspect]), extent)
    corner = jax.random.uniform(keys[2], (2,)) * (extent - box)
    scale = size / box
    pixels = video.astype(jnp.float32) / 255
    view = jax.image.scale_and_translate(
        pixels,
        (pixels.shape[0], size, size, 3),
        (1, 2),
        scale,
        -corner * scale,
        method="linear",
    )
    contrast = 1 + recipe.colour * jax.random.uniform(keys[3], minval=-1.0)
    tint = jax.random.uniform(keys[4], (3,), minval=-1.0) / 2
    brightness = jax.random.uniform(keys[5], minval=-1.0) / 2
    mean = view.mean()
    view = (view - mean) * contrast + mean + recipe.colour * (brightness + tint) / 2
    if recipe.flip:
        mirrored = jax.random.bernoulli(jax.random.fold_in(key, 6))
        view = jnp.where(mirrored, view[:, :, ::-1], view)
    return jnp.clip(view, 0, 1)


def make_train_step(module, spec: ModelSpec, recipe: Recipe) -> Callable:
    """`(state, videos, extents, labels) -> (state, metrics)` for one device."""
    optimizer = make_optimizer(recipe)

    def loss_fn(params, statistics, key, videos, labels):
        variables = {"params": params} | statistics
        logits, mutated = module.apply(
            variables,
            video_lib.normalize(videos, spec),
            train=True,
            mutable=list(statistics),
            rngs={"dropout": key},
        )
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, spec.num_classes), recipe.label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()
        return loss, (mutated, (logits.argmax(-1) == labels).mean())

    def train_step(state: TrainState, videos, extents, labels):
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
        view_key, dropout_key = jax.random.split(key)
        view = functools.partial(random_view, size=spec.size, recipe=recipe)
        videos = jax.vmap(view)(
            jax.random.split(view_key, len(videos)), videos, extents
        )
        (loss, (statistics, accuracy)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params, state.statistics, dropout_key, videos, labels)
        gradient, statistics, loss, accuracy = jax.lax.pmean(
            (gradient, statistics, loss, accuracy), parallel.AXIS
        )
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
        state = TrainState(
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            step=state.step + 1,
        )
        return state, {"loss": loss, "accuracy": accuracy}

    return train_step


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine and a gradient clipped to norm 1."""
    warmup = max(1, recipe.steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, warmup, max(recipe.steps, warmup + 1)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            weight_decay=recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def batches(
    clips: Clips, spec: ModelSpec, recipe: Recipe
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Endless batches of windows: (b, t, H, W, 3) uint8, extents (b, 2), labels (b,).

    Every clip is seen once before any is seen again. A clip shorter than the window
    is looped.
    """
    rng = np.random.default_rng(recipe.seed)
    height = max(v.shape[1] for v in clips.videos)
    width = max(v.shape[2] for v in clips.videos)
    order: collections.deque[int] = collections.deque()
    while True:
        videos = np.zeros((recipe.batch, spec.frames, height, width, 3), np.uint8)
        extents = np.zeros((recipe.batch, 2), np.float32)
        labels = np.zeros(recipe.batch, np.int32)
        for row in range(recipe.batch):
            if not order:
                order.extend(rng.permutation(len(clips.videos)))
            number = order.popleft()
            video = clips.videos[number]
            start = rng.integers(max(1, len(video) - spec.window + 1))
            frames = (start + spec.stride * np.arange(spec.frames)) % len(video)
            h, w = video.shape[1:3]
            videos[row, :, :h, :w] = video[frames]
            extents[row] = h, w
            labels[row] = clips.labels[number]
        yield videos, extents, labels


def evaluate(model: Model, clips: Clips, views: int = 4, batch: int = 32) -> np.ndarray:
    """Class probabilities of clips, (n, classes): the mean over evenly spaced windows.

    Each window is centre-cropped like a stimulus.
    """
    spec = model.spec
    windows = []
    for video in clips.videos:
        last = max(0, len(video) - spec.window)
        for start in np.linspace(0, last, views).round().astype(int):
            frames = (start + spec.stride * np.arange(spec.frames)) % len(video)
            windows.append(_centre(video[frames], spec.size))
    probabilities = [
        jax.nn.softmax(taps.predict(model, np.stack(windows[i : i + batch]) / 255.0))
        for i in range(0, len(windows), batch)
    ]
    flat = np.concatenate([np.asarray(p) for p in probabilities])
    return flat.reshape(len(clips.videos), views, -1).mean(1)


def with_moments(model: Model, clips: Clips, most: int = 256) -> Model:
    """The model with tap moments over clips, if it needs them to be a verifier."""
    try:
        taps.target_moments(model)
        return model
    except UserError:
        pass
    spec, chosen = model.spec, clips.videos[:: -(-len(clips.videos) // most)]
    middle = [
        video[
            video_lib.sample_frames(len(video), spec.frames, spec.stride, short="loop")
        ]
        for video in chosen
    ]
    windows = np.stack([_centre(video, spec.size) for video in middle]) / 255.0
    return dataclasses.replace(model, moments=taps.estimate_moments(model, windows))


@functools.partial(jax.jit, static_argnums=1)
def _resized(video: jax.Array, size: int) -> jax.Array:
    return video_lib.resize_and_crop(video.astype(jnp.float32), size)


def _centre(video: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(_resized(video, size))


def train(
    model: Model,
    clips: Clips,
    held_out: Clips | None = None,
    recipe: Recipe | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[Report]:
    """Trains, and yields a report every twenty steps and after every evaluation.

    Args:
      model: where to start; its variables are not changed.
      clips: to learn from; labels index `model.spec.classes`.
      held_out: to evaluate on, or None.
      recipe: settings.
      devices: all by default; the batch must divide by their number.

    Yields:
      Reports; the last one holds the trained model.

    Raises:
      UserError: no clips, or a batch that does not divide.
    """
    recipe = recipe or Recipe()
    devices = list(devices or jax.devices())
    if not len(clips.videos):
        raise UserError("data: no clips; expected <class>/<clip> files")
    if recipe.batch % len(devices):
        raise UserError(f"batch={recipe.batch}: must divide by {len(devices)} devices")
    spec, statistics = model.spec, dict(model.variables)
    params = statistics.pop("params")
    state = TrainState(
        params, statistics, make_optimizer(recipe).init(params), jnp.zeros((), int)
    )
    state = parallel.replicate(state, devices)
    step_fn = jax.pmap(
        make_train_step(model.module, spec, recipe),
        axis_name=parallel.AXIS,
        in_axes=(None, 0, 0, 0),
        out_axes=None,
        devices=devices,
    )
    every = max(1, recipe.steps // recipe.evaluations)
    recent = []
    for step, batch in zip(
        range(1, recipe.steps + 1), _ahead(batches(clips, spec, recipe)), strict=False
    ):
        state, metrics = step_fn(state, *parallel.shard(batch, devices))
        recent.append(metrics)
        evaluated = step % every == 0 or step == recipe.steps
        if not evaluated and step % 20:
            continue
        loss, train_accuracy = (
            float(np.mean([jax.device_get(m[name]) for m in recent]))
            for name in ("loss", "accuracy")
        )
        recent = []
        if not np.isfinite(loss):
            raise UserError(
                f"learning_rate={recipe.learning_rate}: the loss became"
                f" {loss} by step {step}; lower it"
            )
        accuracy = None
        trained = dataclasses.replace(model, variables=_variables(state))
        if evaluated and held_out is not None:
            predicted = evaluate(trained, held_out, recipe.views).argmax(1)
            accuracy = float((predicted == held_out.labels).mean())
        yield Report(step, loss, train_accuracy, accuracy, trained)


def _variables(state: TrainState) -> Mapping[str, Any]:
    return {"params": state.params} | dict(state.statistics)


def _ahead(source: Iterator, count: int = 3) -> Iterator:
    """Draws from an iterator in a background thread, `count` items ahead."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, source) for _ in range(count))
        while True:
            item = waiting.popleft().result()
            waiting.append(pool.submit(next, source))
            yield item
