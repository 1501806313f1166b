"""Trains a video classifier on clips in memory, or on renderings that are never stored.

An inversion shows nothing without trained weights; this makes some. `Clips` are uint8
arrays on the host: windows of frames are cut there in a background thread, crops and
colours are drawn on the devices. `Renderings` are drawn on the devices altogether.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import taps
from leaps_jax import video as video_lib
from leaps_jax.attacks import Attack, attacked, withstands
from leaps_jax.errors import UserError
from leaps_jax.model import Model, ModelSpec
from leaps_jax.runtime import parallel
from leaps_jax.taps import Tap


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
      hints: weight of `hint_loss`, which tells tokens where the joints of a rendered
        figure are; the shipped transformers were trained with it.
      attack: learn from clips as this attack changes them, which makes weights robust;
        None for clips as they are.
      attack_warmup: share of the run in which its radius grows, from a fifth.
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
    hints: float = 0.0
    attack: Attack | None = None
    attack_warmup: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "views", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")
        if not 0 <= self.attack_warmup <= 1:
            raise UserError(
                f"attack_warmup={self.attack_warmup}: must be a share from 0 to 1"
            )


Batch = tuple[np.ndarray, ...]
Views = Callable[..., tuple[jax.Array, jax.Array, jax.Array | None]]


class Data(Protocol):
    """Labelled clips to train and to evaluate on."""

    @property
    def labels(self) -> np.ndarray:
        """(n,) indices into `classes`."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def joints(self) -> int:
        """How many are known of a figure; 0 where nothing is."""

    def batches(self, spec: ModelSpec, recipe: Recipe) -> Iterator[Batch]:
        """Endless batches, on the host, of what `views` takes."""

    def views(self, spec: ModelSpec, recipe: Recipe) -> Views:
        """`(key, *batch) -> (pixels, labels, joints)`, on a device.

        Pixels are (b, t, h, w, 3), labels (b,), joints (b, t, joints, 2) x and y in
        frame sizes, or None where they are not known.
        """

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """Clip by clip in order, what to evaluate on: pixels (count, t, h, w, 3)."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips in memory: each (t, h, w, 3) uint8, labels (n,), and the class names."""

    videos: Sequence[np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]
    joints: int = 0

    def batches(self, spec: ModelSpec, recipe: Recipe) -> Iterator[Batch]:
        """Endless windows: (b, t, H, W, 3) uint8, extents (b, 2), labels (b,).

        Every clip is seen once before any is seen again. A clip shorter than the
        window is looped.
        """
        rng = np.random.default_rng(recipe.seed)
        height = max(v.shape[1] for v in self.videos)
        width = max(v.shape[2] for v in self.videos)
        order: collections.deque[int] = collections.deque()
        while True:
            videos = np.zeros((recipe.batch, spec.frames, height, width, 3), np.uint8)
            extents = np.zeros((recipe.batch, 2), np.float32)
            labels = np.zeros(recipe.batch, np.int32)
            for row in range(recipe.batch):
                if not order:
                    order.extend(rng.permutation(len(self.videos)))
                number = order.popleft()
                video = self.videos[number]
                start = rng.integers(max(1, len(video) - spec.window + 1))
                h, w = video.shape[1:3]
                videos[row, :, :h, :w] = _window(video, int(start), spec)
                extents[row] = h, w
                labels[row] = self.labels[number]
            yield videos, extents, labels

    def views(self, spec: ModelSpec, recipe: Recipe) -> Views:
        """Random crops and colours; see `random_view`."""
        view = functools.partial(random_view, size=spec.size, recipe=recipe)

        def views(key, videos, extents, labels):
            keys = jax.random.split(key, len(videos))
            return jax.vmap(view)(keys, videos, extents), labels, None

        return views

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """Evenly spaced windows, one is the middle, centre-cropped like a stimulus."""
        for video in self.videos:
            last = max(0, len(video) - spec.window)
            starts = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
            cut = [_window(video, int(round(start)), spec) for start in starts]
            yield np.stack([_centre(window, spec.size) for window in cut]) / 255.0


def _window(video: np.ndarray, start: int, spec: ModelSpec) -> np.ndarray:
    return video[(start + spec.stride * np.arange(spec.frames)) % len(video)]


@dataclasses.dataclass(frozen=True)
class Renderings:
    """Clips that are drawn on the devices: endless to train on, `count` to evaluate.

    Attributes:
      draw: `(key, label) -> (pixels (t, size, size, 3), joints (t, joints, 2))` of
        the model's own clips.
      classes: names that labels index.
      joints: how many `draw` tells of.
      count: clips of an evaluation, which takes the classes in turn.
      seed: of the clips of an evaluation; those of a training have the recipe's.
    """

    draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    classes: tuple[str, ...]
    joints: int = 0
    count: int = 2000
    seed: int = 2**32 - 1

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int32) % len(self.classes)

    def batches(self, spec: ModelSpec, recipe: Recipe) -> Iterator[Batch]:
        """Endless labels (b,)."""
        rng = np.random.default_rng(recipe.seed)
        while True:
            yield (rng.integers(len(self.classes), size=recipe.batch, dtype=np.int32),)

    def views(self, spec: ModelSpec, recipe: Recipe) -> Views:
        """A new clip for every label; the recipe's crops and colours are not used."""

        def views(key, labels):
            keys = jax.random.split(key, len(labels))
            pixels, joints = jax.vmap(self.draw)(keys, labels)
            return pixels, labels, joints

        return views

    def windows(self, spec: ModelSpec, count: int) -> Iterator[np.ndarray]:
        """A rendering is one window long, whatever the count."""
        draw = jax.jit(jax.vmap(self.draw))
        seed, batch = jax.random.key(self.seed), min(32, self.count)
        fold = jax.vmap(functools.partial(jax.random.fold_in, seed))
        for start in range(0, self.count, batch):
            # the last batch is filled up, so that nothing is compiled for it
            numbers = np.arange(start, start + batch)
            pixels, _ = draw(fold(numbers), numbers % len(self.classes))
            yield from np.asarray(pixels)[: self.count - start, None]


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a training stands.

    Attributes:
      step: steps done.
      loss: mean over the steps since the last report.
      train_accuracy: likewise; under the attack, where there is one.
      accuracy: on held-out clips; None between two evaluations.
      robust_accuracy: on the first of them under a stronger attack than that of the
        training; None before the last step, and without an attack.
      model: as trained so far.
    """

    step: int
    loss: float
    train_accuracy: float
    accuracy: float | None
    robust_accuracy: float | None
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


HINTS = "hints"  # where the parameters keep the heads of `hint_loss`


def make_train_step(model: Model, recipe: Recipe, views: Views) -> Callable:
    """`(state, *batch) -> (state, metrics)` for one device."""
    optimizer, spec = make_optimizer(recipe), model.spec

    def forward(params, statistics, key, videos, labels):
        logits, found, mutated = taps.apply_mutable(
            model.module,
            {"params": params} | statistics,
            video_lib.normalize(videos, spec),
            model.tap_filter,
            list(statistics),
            train=True,
            rngs={"dropout": key},
        )
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, spec.num_classes), recipe.label_smoothing
        )
        losses = optax.softmax_cross_entropy(logits, targets)
        return losses, logits, found, mutated

    def loss_fn(params, statistics, key, videos, labels, joints):
        losses, logits, found, mutated = forward(
            params, statistics, key, videos, labels
        )
        loss = losses.mean()
        if recipe.hints:
            loss += recipe.hints * hint_loss(params[HINTS], found, joints)
        return loss, (mutated, (logits.argmax(-1) == labels).mean())

    def train_step(state: TrainState, *batch):
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
        view_key, dropout_key, attack_key = jax.random.split(key, 3)
        videos, labels, joints = views(view_key, *batch)
        if recipe.attack:
            videos = attacked(
                lambda videos: forward(
                    state.params, state.statistics, dropout_key, videos, labels
                )[0].sum(),
                attack_key,
                videos,
                recipe.attack,
                _radius(recipe, state.step),
            )
        (loss, (statistics, accuracy)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params, state.statistics, dropout_key, videos, labels, joints)
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


def _radius(recipe: Recipe, step: jax.Array) -> jax.Array:
    """The attack's radius at a step: it grows from a fifth to the whole."""
    assert recipe.attack is not None
    warmup = recipe.attack_warmup * recipe.steps
    grown = 0.2 + 0.8 * jnp.minimum(1.0, step / max(warmup, 1.0))
    return recipe.attack.radius * grown


def hint_loss(
    head: Mapping[str, jax.Array], found: Mapping[str, Tap], joints: jax.Array
) -> jax.Array:
    """How badly a linear map of the last layer's tokens tells the joints of a figure.

    Every token is asked which joints lie in it, and how they move. Zero for a perfect
    answer, one for none.

    Args:
      head: "kernel" (c, joints + 2) and "bias" of the linear map.
      found: taps of the network.
      joints: (b, t, joints, 2) x and y in frame sizes.
    """
    tokens = _grid_tokens(found)
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
        jnp.square(told - truth).mean() / (jnp.square(truth).mean() + 1e-6)
        for told, truth in (
            (answer[..., :-2], near),
            (answer[..., -2:], motion),
        )
    ]
    return sum(errors, start=jnp.zeros(())) / len(errors)


def _grid_tokens(found: Mapping[str, Tap]) -> jax.Array:
    """The last tap that is a square grid at every time, (b, t, n, c) in float32."""
    grids = []
    for tap in found.values():
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


def _with_hint_head(params: Mapping[str, Any], model: Model, joints: int) -> Any:
    """Parameters with a linear map of zeros for `hint_loss`."""
    spec = model.spec
    video = jnp.zeros((1, spec.frames, spec.size, spec.size, 3))

    def width(variables, video):
        found = taps.apply(model.module, variables, video, model.tap_filter)[1]
        return _grid_tokens(found)

    channels = jax.eval_shape(width, model.variables, video).shape[-1]
    outputs = joints + 2
    head = {"kernel": jnp.zeros((channels, outputs)), "bias": jnp.zeros(outputs)}
    return {**params, HINTS: head}


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


def evaluate(
    model: Model,
    data: Data,
    views: int = 4,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Class probabilities of clips, (n, classes): the mean over windows of each.

    Args:
      model: to ask.
      data: clips.
      views: windows of a clip.
      batch: windows on the device at a time.
      progress: called with the number of clips that were looked at so far.
    """
    started, probabilities = 0, []

    def drawn() -> Iterator[np.ndarray]:
        nonlocal started
        for own in data.windows(model.spec, views):
            started += 1
            yield from own

    windows = drawn()
    for part in iter(lambda: list(itertools.islice(windows, batch)), []):
        logits = taps.predict(model, np.stack(part))
        probabilities.append(np.asarray(jax.nn.softmax(logits)))
        if progress:
            progress(started)
    flat = np.concatenate(probabilities)
    return flat.reshape(len(data.labels), -1, flat.shape[-1]).mean(1)


def evaluate_attacked(
    model: Model,
    data: Data,
    attack: Attack,
    most: int = 512,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Which clips a model still names right under an attack, (n,) of bool.

    Args:
      model: the network.
      data: of each clip the window in the middle is attacked.
      attack: see `attacks.withstands`.
      most: clips, evenly spaced among those of the data.
      batch: clips on the device at a time.
      progress: called with the number of clips of the data that were passed so far.
    """
    every = -(-len(data.labels) // most)
    windows = itertools.islice(data.windows(model.spec, 1), 0, None, every)
    labels = np.asarray(data.labels)[::every]
    right = []
    for start in range(0, len(labels), batch):
        clips = np.concatenate(list(itertools.islice(windows, batch)))
        of = labels[start : start + batch]
        # the last batch is filled up, so that nothing is compiled for it
        rows = np.minimum(np.arange(min(batch, len(labels))), len(of) - 1)
        found = withstands(model, clips[rows], of[rows], attack, seed=start)
        right.append(found[: len(of)])
        if progress:
            progress(min((start + batch) * every, len(data.labels)))
    return np.concatenate(right)


def with_moments(
    model: Model,
    data: Data,
    most: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Model:
    """The model with tap moments over clips, if it needs them to be a verifier.

    Args:
      model: that was trained.
      data: clips.
      most: of them to take.
      progress: called with the number of clips that were looked at so far.
    """
    try:
        taps.target_moments(model)
        return model
    except UserError:
        pass
    every = -(-len(data.labels) // most)
    chosen = itertools.islice(data.windows(model.spec, 1), 0, None, every)
    windows = np.concatenate(list(chosen))
    return dataclasses.replace(
        model, moments=taps.estimate_moments(model, windows, progress=progress)
    )


@functools.partial(jax.jit, static_argnums=1)
def _resized(video: jax.Array, size: int) -> jax.Array:
    return video_lib.resize_and_crop(video.astype(jnp.float32), size)


def _centre(video: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(_resized(video, size))


def train(
    model: Model,
    data: Data,
    held_out: Data | None = None,
    recipe: Recipe | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Report]:
    """Trains, and yields a report every twenty steps and after every evaluation.

    Args:
      model: where to start; its variables are not changed.
      data: to learn from; labels index `model.spec.classes`.
      held_out: to evaluate on, or None.
      recipe: settings.
      devices: all by default; the batch must divide by their number.
      progress: called during an evaluation with the steps that were done, and the
        clips that were looked at so far, from 0.

    Yields:
      Reports; the last one holds the trained model.

    Raises:
      UserError: no clips, or a batch that does not divide.
    """
    recipe = recipe or Recipe()
    devices = list(devices or jax.devices())
    if not len(data.labels):
        raise UserError("data: no clips; expected <class>/<clip> files")
    if recipe.hints and not data.joints:
        raise UserError(f"hints={recipe.hints}: only rendered data knows joints")
    if recipe.batch % len(devices):
        raise UserError(f"batch={recipe.batch}: must divide by {len(devices)} devices")
    spec, statistics = model.spec, dict(model.variables)
    params = statistics.pop("params")
    if recipe.hints:
        params = _with_hint_head(params, model, data.joints)
    state = TrainState(
        params, statistics, make_optimizer(recipe).init(params), jnp.zeros((), int)
    )
    state = parallel.replicate(state, devices)
    source = data.batches(spec, recipe)
    first = next(source)
    step_fn = parallel.map_over_devices(
        make_train_step(model, recipe, data.views(spec, recipe)),
        devices,
        in_axes=(None, *[0] * len(first)),
        out_axes=None,
    )
    every = max(1, recipe.steps // recipe.evaluations)
    recent = []
    batches = _ahead(itertools.chain([first], source))
    for step, batch in zip(range(1, recipe.steps + 1), batches, strict=False):
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
        # moments that the model came with are of other weights
        trained = dataclasses.replace(model, variables=_variables(state), moments=None)
        if evaluated and held_out is not None:
            told = progress and functools.partial(progress, step)
            if told:
                told(0)
            predicted = evaluate(trained, held_out, recipe.views, progress=told)
            accuracy = float((predicted.argmax(1) == held_out.labels).mean())
        robust = None
        if recipe.attack and held_out is not None and step == recipe.steps:
            if told:
                told(0)
            withstood = evaluate_attacked(
                trained, held_out, recipe.attack.strong(), progress=told
            )
            robust = float(withstood.mean())
        yield Report(step, loss, train_accuracy, accuracy, robust, trained)


def _variables(state: TrainState) -> Mapping[str, Any]:
    params = {name: p for name, p in state.params.items() if name != HINTS}
    return {"params": params} | dict(state.statistics)


def _ahead(source: Iterator, count: int = 3) -> Iterator:
    """Draws from an iterator in a background thread, `count` items ahead."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, source) for _ in range(count))
        while True:
            item = waiting.popleft().result()
            waiting.append(pool.submit(next, source))
            yield item
