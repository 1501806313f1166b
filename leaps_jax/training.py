"""Trains a video classifier on clips in memory, or on renderings that are never stored.

An inversion shows nothing without trained weights; this makes some. The clips are a
`Dataset` of `data.datasets`, whose batches are made in a background thread.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import hints, taps
from leaps_jax import video as video_lib
from leaps_jax.attacks import Attack, attacked, withstands
from leaps_jax.data.augmentation import Augmentation
from leaps_jax.data.datasets import Dataset, Views
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.runtime import parallel

_BETWEEN_REPORTS = 10.0  # seconds


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
      hints: weight of `hints.hint_loss`, by which tokens tell where the joints of a
        rendered figure are; the shipped transformers were trained with it.
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
        for name in ("learning_rate", "weight_decay", "hints"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{name}={getattr(self, name)}: must be finite and not negative"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")
        if not 0 <= self.attack_warmup <= 1:
            raise UserError(
                f"attack_warmup={self.attack_warmup}: must be a share from 0 to 1"
            )

    @property
    def augmentation(self) -> Augmentation:
        """The random changes of a clip."""
        return Augmentation(self.smallest_crop, self.colour, self.flip)


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
      state: on the devices, from which `train` goes on.
    """

    step: int
    loss: float
    train_accuracy: float
    accuracy: float | None
    robust_accuracy: float | None
    model: Model
    state: "TrainState"


class TrainState(flax.struct.PyTreeNode):
    """Weights, running statistics and the state of the optimiser; the step counts."""

    params: Any
    statistics: Any
    optimizer: Any
    step: jax.Array


def make_train_step(model: Model, recipe: Recipe, views: Views) -> Callable:
    """`(state, *batch) -> (state, metrics)` for one device."""
    optimizer, spec = make_optimizer(recipe), model.spec

    def forward(params, statistics, key, videos, labels):
        logits, tapped, mutated = taps.apply_mutable(
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
        return losses, logits, tapped, mutated

    def loss_fn(params, statistics, key, videos, labels, joints):
        losses, logits, tapped, mutated = forward(
            params, statistics, key, videos, labels
        )
        loss = losses.mean()
        if recipe.hints:
            loss += recipe.hints * hints.hint_loss(params[hints.HEAD], tapped, joints)
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
        norm = optax.tree.norm(gradient)
        return state, {"loss": loss, "accuracy": accuracy, "gradient": norm}

    return train_step


def _radius(recipe: Recipe, step: jax.Array) -> jax.Array:
    """The attack's radius at a step: it grows from a fifth to the whole."""
    assert recipe.attack is not None
    warmup = recipe.attack_warmup * recipe.steps
    grown = 0.2 + 0.8 * jnp.minimum(1.0, step / max(warmup, 1.0))
    return recipe.attack.radius * grown


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
    data: Dataset,
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

    def windows_of_clips() -> Iterator[np.ndarray]:
        nonlocal started
        for windows_of_clip in data.windows(model.spec, views):
            started += 1
            yield from windows_of_clip

    windows = windows_of_clips()
    for part in iter(lambda: list(itertools.islice(windows, batch)), []):
        logits = taps.predict(model, np.stack(part))
        probabilities.append(np.asarray(jax.nn.softmax(logits)))
        if progress:
            progress(started)
    flat = np.concatenate(probabilities)
    return flat.reshape(len(data.labels), -1, flat.shape[-1]).mean(1)


def evaluate_attacked(
    model: Model,
    data: Dataset,
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
        targets = labels[start : start + batch]
        # the last batch is filled up, so that nothing is compiled for it
        rows = np.minimum(np.arange(min(batch, len(labels))), len(targets) - 1)
        withstood = withstands(model, clips[rows], targets[rows], attack, seed=start)
        right.append(withstood[: len(targets)])
        if progress:
            progress(min((start + batch) * every, len(data.labels)))
    return np.concatenate(right)


def with_moments(
    model: Model,
    data: Dataset,
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


def check(
    data: Dataset, recipe: Recipe, devices: Sequence[jax.Device] | None = None
) -> None:
    """Refuses what `train` would, before any work; arguments are its.

    Raises:
      UserError: no clips, hints that need joints, or a batch that does not divide.
    """
    count = len(devices or jax.devices())
    if not len(data.labels):
        raise UserError("data: no clips; expected <class>/<clip> files")
    if recipe.hints and not data.joints:
        raise UserError(f"hints={recipe.hints}: only rendered data knows joints")
    if recipe.batch % count:
        raise UserError(f"batch={recipe.batch}: must divide by {count} devices")


def init_state(model: Model, data: Dataset, recipe: Recipe) -> TrainState:
    """Where a training starts; arguments are those of `train`."""
    statistics = dict(model.variables)
    params = statistics.pop("params")
    if recipe.hints:
        params = hints.with_head(params, model, data.joints)
    optimizer = make_optimizer(recipe).init(params)
    return TrainState(params, statistics, optimizer, jnp.zeros((), int))


def train(
    model: Model,
    data: Dataset,
    held_out: Dataset | None = None,
    recipe: Recipe | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
    state: TrainState | None = None,
) -> Iterator[Report]:
    """Trains, and yields a report every twenty steps and after every evaluation.

    Where steps are slow there is a report every ten seconds too. Random draws and the
    order of the clips depend on the step alone: whoever goes on from the state of any
    report ends with the same weights.

    Args:
      model: where to start; its variables are not changed.
      data: to learn from; labels index `model.spec.classes`.
      held_out: to evaluate on, or None.
      recipe: settings.
      devices: all by default; the batch must divide by their number.
      progress: called during an evaluation with the steps that were done, and the
        clips that were looked at so far, from 0.
      state: to go on from, that of a report of the same training before its last step;
        a new one by default.

    Yields:
      Reports; the last one holds the trained model.

    Raises:
      UserError: as `check` does, or a loss or its gradient is not finite.
    """
    recipe = recipe or Recipe()
    devices = list(devices or jax.devices())
    check(data, recipe, devices)
    if state is None:
        state = init_state(model, data, recipe)
    done = int(state.step)
    state = parallel.replicate(state, devices)
    # batches that were seen are made again and dropped: they follow from the seed
    source = data.batches(model.spec, recipe.batch, recipe.seed)
    source = itertools.islice(source, done, None)
    first = next(source)
    step_fn = parallel.map_over_devices(
        make_train_step(model, recipe, data.views(model.spec, recipe.augmentation)),
        devices,
        in_axes=(None, *[0] * len(first)),
        out_axes=None,
    )
    every = max(1, recipe.steps // recipe.evaluations)
    recent, reported = [], time.monotonic()
    batches = _ahead(itertools.chain([first], source))
    for step, batch in zip(range(done + 1, recipe.steps + 1), batches, strict=False):
        state, metrics = step_fn(state, *parallel.shard(batch, devices))
        recent.append(metrics)
        evaluated = step % every == 0 or step == recipe.steps
        slow = time.monotonic() - reported > _BETWEEN_REPORTS
        if step % 20 and not evaluated and not slow:
            continue
        loss, train_accuracy, gradient = (
            float(np.mean([jax.device_get(m[name]) for m in recent]))
            for name in ("loss", "accuracy", "gradient")
        )
        recent = []
        if not np.isfinite([loss, gradient]).all():
            raise UserError(
                f"learning_rate={recipe.learning_rate}: by step {step} the loss became"
                f" {loss} and the norm of its gradient {gradient}; lower it"
            )
        accuracy = None
        # moments that the model came with are of other weights
        trained = dataclasses.replace(model, variables=_variables(state), moments=None)
        if evaluated and held_out is not None:
            report_clips = progress and functools.partial(progress, step)
            if report_clips:
                report_clips(0)
            predicted = evaluate(trained, held_out, recipe.views, progress=report_clips)
            accuracy = float((predicted.argmax(1) == held_out.labels).mean())
        robust = None
        if recipe.attack and held_out is not None and step == recipe.steps:
            if report_clips:
                report_clips(0)
            withstood = evaluate_attacked(
                trained, held_out, recipe.attack.strong(), progress=report_clips
            )
            robust = float(withstood.mean())
        yield Report(step, loss, train_accuracy, accuracy, robust, trained, state)
        reported = time.monotonic()


def _variables(state: TrainState) -> Mapping[str, Any]:
    return {"params": hints.without_head(state.params)} | dict(state.statistics)


def _ahead(source: Iterator, count: int = 3) -> Iterator:
    """Draws from an iterator in a background thread, `count` items ahead."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, source) for _ in range(count))
        while True:
            item = waiting.popleft().result()
            waiting.append(pool.submit(next, source))
            yield item
