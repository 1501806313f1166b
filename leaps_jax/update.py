"""The update step: one pure function from state to state.

Each video of a batch has parameters, which a `Parametrization` decodes. A step decodes
them, shows a random view of the video to the models, and changes the parameters against
the gradient of the objective.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import parametrizations, taps
from leaps_jax import transforms as transforms_lib
from leaps_jax import video as video_lib
from leaps_jax.config import Config
from leaps_jax.errors import UserError
from leaps_jax.model import Model, ModelSpec
from leaps_jax.parametrizations import Parametrization
from leaps_jax.runtime import parallel
from leaps_jax.terms import Context, Objective, Primed
from leaps_jax.transforms import Transform, chain


class State(flax.struct.PyTreeNode):
    """The state of an optimisation; the leading axis of every leaf is the video.

    Randomness depends on `seed`, `index` and `step` alone.

    Attributes:
      parameters: a tree, which the parametrization decodes to videos.
      optimizer: the state of optax of each video.
      best: the parameters of each video with the lowest loss at the end of any call.
      best_loss: (b,) that loss, of the video without random views.
      seed: (b,) of the video's random draws.
      index: (b,) number of the video among those with its seed.
      step: (b,) steps done.
      finite: (b,) False once any loss or gradient was not finite; the state is then
        that before the step, and does not change any more.
    """

    parameters: Any
    optimizer: Any
    best: Any
    best_loss: jax.Array
    seed: jax.Array
    index: jax.Array
    step: jax.Array
    finite: jax.Array


class Batch(flax.struct.PyTreeNode):
    """The targets of b videos.

    Attributes:
      labels: (b,) target classes, -1 for a video without one.
      weight: (b,) 1 for a video and 0 for padding.
      primed: means of the taps for the stimuli.
    """

    labels: Any
    weight: Any
    primed: Primed


class Frozen(flax.struct.PyTreeNode):
    """Constants of the compiled step.

    Attributes:
      model: variables of the model.
      verifier: variables of the verifier, or None.
      moments: the moments that the verifier's taps should have.
    """

    model: Any
    verifier: Any
    moments: Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that determines the update step, and is the same for all videos.

    Attributes:
      model: the inverted model.
      verifier: another model, or None if the objective uses none.
      objective: what is minimised.
      config: settings of the optimiser and of the run.
      parametrization: what the optimiser changes.
      transform: the random view that the models see of a video.
    """

    model: Model
    verifier: Model | None
    objective: Objective
    config: Config
    parametrization: Parametrization
    transform: Transform


def make_setup(
    model: Model,
    verifier: Model | None,
    objective: Objective,
    config: Config,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Transform] | None = None,
) -> Setup:
    """Makes and checks a setup.

    Args:
      model: the inverted model.
      verifier: another model, or None if the objective uses none.
      objective: what is minimised.
      config: settings of the optimiser and of the run.
      parametrization: what the optimiser changes; that of `config` if None.
      transforms: random changes of a video, in order; those of `config` if None.

    Raises:
      UserError: the parametrization or the transforms do not fit the model.
    """
    if parametrization is None:
        parametrization = parametrizations.from_config(config)
    parametrizations.check(parametrization, config)
    if model.spec.size / config.octave_scale ** (config.octaves - 1) < 1:
        given = f"octaves={config.octaves} octave_scale={config.octave_scale}"
        what = f"the smallest would have less than a pixel of {model.spec.size}"
        raise UserError(f"{given}: {what}; lower them")
    transform = augmentation(config, model.spec)
    if transforms is not None:
        for each in transforms:
            if not callable(each):
                raise UserError(
                    f"transforms={each!r}: is no function (key, video) -> video; take"
                    " some of leaps_jax.transforms"
                )
        transform = chain(*transforms)
    setup = Setup(model, verifier, objective, config, parametrization, transform)
    _check_shapes(setup)
    return setup


def _check_shapes(setup: Setup) -> None:
    """Raises UserError where videos get a wrong shape; nothing is computed."""
    spec, parametrization = setup.model.spec, setup.parametrization
    want = (spec.frames, spec.size, spec.size, 3)

    def check(what: str, make: Callable, *arguments: Any) -> None:
        found = jax.eval_shape(make, *arguments)
        shape = getattr(found, "shape", found)
        if shape != want:
            raise UserError(f"{what} {shape}; the model takes a video of {want}")

    key = jax.eval_shape(jax.random.key, 0)
    check(
        f"parametrization={parametrization.name!r}: decodes to",
        lambda key: parametrization.decode(parametrization.init(key, spec, None), spec),
        key,
    )
    video = jax.ShapeDtypeStruct(want, jnp.float32)
    check("transforms: make", setup.transform, key, video)


UpdateStep = Callable[
    [State, Batch, Frozen, jax.Array], tuple[State, dict[str, jax.Array]]
]


def make_optimizer(config: Config, spec: ModelSpec) -> optax.GradientTransformation:
    """Adam with linear warm-up and cosine decay, on the parameters of one video.

    Gradients are multiplied by the number of pixels, since losses are means over them.
    Adam's epsilon then means the same at every size. It keeps rounding errors in pixels
    that no loss depends on from becoming full steps.
    """
    warmup = min(config.warmup, config.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (warmup + 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=min(config.final_learning_rate, config.learning_rate),
    )
    return optax.chain(
        optax.stateless(lambda gradient, _: smooth(gradient, config)),
        optax.scale(spec.frames * spec.size**2 * 3),
        optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=config.epsilon),
    )


def smooth(gradient: jax.Array, config: Config) -> jax.Array:
    """Blurs a gradient (t, h, w, c) by the Gaussians of `blur` and `temporal_blur`."""
    widths = (config.temporal_blur, config.blur, config.blur)
    for axis, width in enumerate(widths):
        if width:
            positions = np.arange(gradient.shape[axis])
            distances = positions[:, None] - positions
            kernel = np.exp(-np.square(distances / width) / 2)
            kernel /= kernel.sum(0).max()
            smoothed = jnp.tensordot(gradient, kernel.astype(np.float32), (axis, 0))
            gradient = jnp.moveaxis(smoothed, -1, axis)
    return gradient


def augmentation(config: Config, spec: ModelSpec) -> Transform:
    """The random view that the settings ask for."""
    c, steps = config, []
    if c.roll:
        steps.append(transforms_lib.roll(round(c.roll * spec.size)))
    if c.temporal_roll:
        steps.append(transforms_lib.temporal_roll(c.temporal_roll))
    if c.flip:
        steps.append(transforms_lib.flip())
    moves = (c.view_scale, c.view_shift, c.view_tempo, c.view_delay)
    if any(moves):
        steps.append(transforms_lib.view(*moves))
    if c.view_noise:
        steps.append(transforms_lib.noise(c.view_noise))
    if c.view_tint:
        steps.append(transforms_lib.tint(c.view_tint))
    return chain(*steps)


def make_update_step(setup: Setup, octave: int = 0) -> UpdateStep:
    """One optimisation step on the videos of one device, a pure function.

    Args:
      setup: the models, objective and settings; the weights come with `Frozen`.
      octave: how often frames are shrunk before the models see them.

    Returns:
      `(state, batch, frozen, looks) -> (state, metrics)`, to be mapped over
      `parallel.AXIS`. Where the boolean `looks` is true, it optimises nothing. It
      updates `State.best` of each video whose loss is the lowest so far, without a
      random view or an octave, so that no lucky view decides. Both are one function, so
      that the models are compiled once.
      Metrics are per video: every raw term, `total`, `confidence` (the probability
      of the class, of the likeliest where a video has none) and `gradient` (its norm).
    """
    config, spec = setup.config, setup.model.spec
    optimizer = make_optimizer(config, spec)
    project = setup.parametrization.project

    def loss(parameters, state: State, batch: Batch, frozen: Frozen, looks):
        pixels = decode(setup, parameters)
        keys = jax.vmap(_key)(state.seed, state.index, state.step)
        if config.views > 1:  # those of one video are adjacent
            split = jax.vmap(functools.partial(jax.random.split, num=config.views))
            keys = split(keys).reshape(-1)
            repeat = functools.partial(jnp.repeat, repeats=config.views, axis=0)
            pixels, batch = jax.tree.map(repeat, (pixels, batch))
        seen = jax.vmap(setup.transform)(keys, pixels)
        seen = video_lib.at_octave(seen, octave, config.octave_scale)
        seen = jnp.where(looks, pixels, seen)
        values, logits = _evaluate(setup, pixels, seen, batch, frozen)
        if config.views > 1:
            values, logits = _mean_of(config.views, (values, logits))
            batch = jax.tree.map(lambda x: x[:: config.views], batch)
        total = setup.objective.total(values)
        return (total * batch.weight).sum(), (values, total, logits)

    def update_step(state: State, batch: Batch, frozen: Frozen, looks: jax.Array):
        (_, (values, total, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.parameters, state, batch, frozen, looks
        )
        updates, optimizer_state = jax.vmap(optimizer.update)(gradient, state.optimizer)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.vmap(lambda each: project(each, spec))(parameters)

        gradient_norm = jax.vmap(optax.tree.norm)(gradient)
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        finite = jax.lax.pmin(finite.all(), parallel.AXIS)
        better = looks & (total < state.best_loss)
        best = jax.tree.map(
            functools.partial(_where, better), state.parameters, state.best
        )
        old = state.replace(
            best=best,
            best_loss=jnp.where(better, total, state.best_loss),
            finite=state.finite & (finite | looks),
        )
        new = old.replace(
            parameters=parameters, optimizer=optimizer_state, step=state.step + 1
        )
        moves = old.finite & ~looks
        state = jax.tree.map(functools.partial(_where, moves), new, old)
        shares = jax.nn.softmax(logits)
        asked = jnp.take_along_axis(shares, batch.labels[:, None], axis=1)[:, 0]
        confidence = jnp.where(batch.labels < 0, shares.max(1), asked)
        metrics = values | {
            "total": total,
            "confidence": confidence,
            "gradient": gradient_norm,
        }
        return state, metrics

    return update_step


def decode(setup: Setup, parameters: Any) -> jax.Array:
    """The videos of parameters, (b, t, h, w, 3) pixels in [0, 1]."""
    return _decoded(setup.parametrization, setup.model.spec, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(
    parametrization: Parametrization, spec: ModelSpec, parameters: Any
) -> jax.Array:
    return jax.vmap(lambda each: parametrization.decode(each, spec))(parameters)


def _mean_of(views: int, tree: Any) -> Any:
    """The mean over the views of each video, which are adjacent."""
    return jax.tree.map(lambda x: x.reshape(-1, views, *x.shape[1:]).mean(1), tree)


def _evaluate(
    setup: Setup, pixels: jax.Array, seen: jax.Array, batch: Batch, frozen: Frozen
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every raw term {name: (b,)} and the logits.

    The models see `seen`, which are random views of the videos `pixels`.
    """
    model, verifier = setup.model, setup.verifier
    logits, model_taps = taps.apply(
        model.module,
        frozen.model,
        video_lib.normalize(seen, model.spec),
        model.tap_filter,
    )
    verifier_logits, verifier_taps = None, dict[str, taps.Tap]()
    if verifier is not None:
        spec, dtype = verifier.spec, getattr(verifier.module, "dtype", None)
        # a verifier in half precision rounds pixels as much as fast products do
        half = dtype in (jnp.bfloat16, jnp.float16)
        precision = None if half else jax.lax.Precision.HIGHEST
        shown = video_lib.fit(seen, spec.frames, spec.size, precision)
        verifier_logits, verifier_taps = taps.apply(
            verifier.module,
            frozen.verifier,
            video_lib.normalize(shown, verifier.spec),
            verifier.tap_filter,
        )
    context = Context(
        video=video_lib.normalize(pixels, model.spec),
        logits=logits,
        labels=batch.labels,
        taps=model_taps,
        primed=batch.primed,
        verifier_logits=verifier_logits,
        verifier_taps=verifier_taps,
        verifier_moments=frozen.moments,
        batch_mean=parallel.batch_mean(batch.weight),
    )
    return setup.objective.values(context), logits


def _where(chosen: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _key(seed: jax.Array, index: jax.Array, step: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), step)


def init_state(
    setup: Setup, numbers: Any, stimuli: Any = None, seed: Any = None
) -> State:
    """The state of n videos before the first step.

    Each video starts from different noise, or from its stimulus if `config.init` is
    "stimulus".

    Args:
      setup: the model, parametrization and settings.
      numbers: (n,) indices of the videos among those with their seed.
      stimuli: (n, t, h, w, 3) pixels in [0, 1], if videos start from them.
      seed: (n,) of each video; that of the settings by default.
    """
    config, spec = setup.config, setup.model.spec
    count, index = len(numbers), jnp.asarray(numbers, jnp.int32)
    seed = np.full(count, config.seed, np.uint32) if seed is None else seed
    seed = jnp.asarray(seed)
    # one more than any step, so that no step draws from the key of the noise
    keys = jax.vmap(lambda s, i: _key(s, i, config.steps))(seed, index)
    init = setup.parametrization.init
    if config.init == "stimulus":
        clips = jnp.asarray(stimuli)
        parameters = jax.vmap(lambda key, clip: init(key, spec, clip))(keys, clips)
    else:
        parameters = jax.vmap(lambda key: init(key, spec, None))(keys)
    return State(
        parameters=parameters,
        optimizer=jax.vmap(make_optimizer(config, spec).init)(parameters),
        best=parameters,
        best_loss=jnp.full(count, jnp.inf),
        seed=seed,
        index=index,
        step=jnp.zeros(count, jnp.int32),
        finite=jnp.ones(count, bool),
    )


def prime(
    model: Model, variables: Any, stimuli: jax.Array, objective: Objective
) -> Primed:
    """The means of the taps for stimuli that an objective uses.

    Args:
      model: whose taps they are.
      variables: of the model.
      stimuli: (b, t, h, w, 3) pixels in [0, 1].
      objective: which means it uses.
    """
    normalized = video_lib.normalize(stimuli, model.spec)
    _, found = taps.apply(model.module, variables, normalized, model.tap_filter)
    means: dict[str, jax.Array] = {}
    if "stimulus" in objective.uses:
        means = {name: tap.mean() for name, tap in found.items()}
    timed = {name: tap for name, tap in found.items() if tap.time_axis is not None}
    by_time = {
        cells: {name: tap.mean_by_time(cells) for name, tap in timed.items()}
        for cells in sorted(objective.cells)
    }
    return Primed(means, by_time)
