"""The engine: noise videos are optimised until a frozen model sees what it should.

It knows no files, no class names and no particular model. What is optimised are the
parameters of a `Parametrization`. `update_step` is one pure function; `iterate` runs it
over devices and yields a snapshot after every call;
`synthesize` is the short way to the result:

>>> result = synthesize(model, stimuli, labels=[3])             # doctest: +SKIP
>>> result.videos.shape                                         # doctest: +SKIP
(1, 4, 160, 160, 3)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import objectives, parametrizations, taps
from leaps_jax import transforms as transforms_lib
from leaps_jax import video as video_lib
from leaps_jax.config import Config, ModelSpec
from leaps_jax.errors import UserError
from leaps_jax.objectives import Context, Objective, Primed
from leaps_jax.parametrizations import Parametrization
from leaps_jax.runtime import parallel
from leaps_jax.runtime.executable_cache import Programs, compile_for
from leaps_jax.taps import Model
from leaps_jax.transforms import Transform, chain


class State(flax.struct.PyTreeNode):
    """What changes from step to step; the leading axis of every leaf is the video.

    Attributes:
      parameters: a tree, of which the parametrization decodes videos.
      optimizer: the state of optax, one a video.
      best: per video, the parameters with the lowest loss at the end of any call.
      best_loss: (b,), that loss, of the video as it is.
      seed: (b,) and
      index: (b,) number of the video among those of its seed: with the step, the only
        sources of its randomness.
      step: (b,) steps done.
      finite: (b,), False once any loss or gradient was not finite; from then on the
        state stays as it was before that step.
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
    """What a video is made for.

    Attributes:
      labels: (b,) target classes.
      weight: (b,), 1 for a video and 0 for one that fills the batch up.
      primed: what the taps are for the stimulus.
    """

    labels: Any
    weight: Any
    primed: Primed


class Frozen(flax.struct.PyTreeNode):
    """Constants of the compiled step: weights and the moments to match."""

    model: Any
    verifier: Any
    moments: Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all videos of a synthesis have in common.

    Attributes:
      model: the inverted model.
      verifier: another model, or None if the objective uses none.
      objective: what is minimised.
      config: settings of the optimiser and of the run.
      parametrization: what the optimiser changes.
      transform: the random change of a video before the models see it.
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
    """A setup, with the parametrization and the transforms of the settings if None."""
    if parametrization is None:
        parametrization = parametrizations.from_config(config)
    parametrizations.check(parametrization, config)
    transform = augmentation(config, model.spec)
    if transforms is not None:
        for one in transforms:
            if not callable(one):
                raise UserError(
                    f"transforms={one!r}: is no function (key, video) -> video; take"
                    " some of leaps_jax.transforms"
                )
        transform = chain(*transforms)
    setup = Setup(model, verifier, objective, config, parametrization, transform)
    _check_shapes(setup)
    return setup


def _check_shapes(setup: Setup) -> None:
    """Raises UserError where a video of another shape comes out; computes nothing."""
    spec, one = setup.model.spec, setup.parametrization
    want = (spec.frames, spec.size, spec.size, 3)

    def check(what: str, make: Callable, *arguments: Any) -> None:
        found = jax.eval_shape(make, *arguments)
        shape = getattr(found, "shape", found)
        if shape != want:
            raise UserError(f"{what} {shape}; the model takes a video of {want}")

    key = jax.eval_shape(jax.random.key, 0)
    check(
        f"parametrization={one.name!r}: decodes to",
        lambda key: one.decode(one.init(key, spec, None), spec),
        key,
    )
    video = jax.ShapeDtypeStruct(want, jnp.float32)
    check("transforms: make", setup.transform, key, video)


_BESIDE_TERMS = ("total", "confidence", "gradient")
_DERIVED = ("total", "confidence")
UpdateStep = Callable[[State, Batch, Frozen], tuple[State, dict[str, jax.Array]]]


def make_optimizer(config: Config, spec: ModelSpec) -> optax.GradientTransformation:
    """Adam with linear warm-up and cosine decay, on the parameters of one video.

    Losses are means over pixels, so a gradient shrinks with the number of pixels;
    undone, Adam's epsilon means the same at every size, and keeps rounding errors of
    pixels that nothing depends on from becoming full steps.
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
    """A gradient (t, h, w, c) under the Gaussian of `blur` and `temporal_blur`."""
    widths = (config.temporal_blur, config.blur, config.blur)
    for axis, width in enumerate(widths):
        if width:
            places = np.arange(gradient.shape[axis])
            away = places[:, None] - places
            kernel = np.exp(-np.square(away / width) / 2)
            kernel /= kernel.sum(0).max()
            smoothed = jnp.tensordot(gradient, kernel.astype(np.float32), (axis, 0))
            gradient = jnp.moveaxis(smoothed, -1, axis)
    return gradient


def augmentation(config: Config, spec: ModelSpec) -> Transform:
    """The random change of every step that the settings ask for."""
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


def at_octave(video: jax.Array, octave: int, scale: float) -> jax.Array:
    """Shrinks frames by `scale ** octave` and tiles them to the size they had.

    The network then sees the same picture at a coarser scale, at a size that every
    architecture takes.
    """
    if octave == 0:
        return video
    b, t, h, w, c = video.shape
    small = (round(h / scale**octave), round(w / scale**octave))
    video = jax.image.resize(video, (b, t, *small, c), "linear")
    pad = [(0, 0), (0, 0), (0, h - small[0]), (0, w - small[1]), (0, 0)]
    return jnp.pad(video, pad, mode="wrap")


def make_update_step(setup: Setup, octave: int = 0) -> UpdateStep:
    """One optimisation step on the videos of one device, a pure function.

    Args:
      setup: what videos have in common; the weights of models come with `Frozen`.
      octave: how often frames are shrunk before the network sees them.

    Returns:
      `(state, batch, frozen) -> (state, metrics)`, to be mapped over `parallel.AXIS`.
      Metrics are per video: every raw term, `total`, `confidence` (the probability
      of the class) and `gradient` (its norm).
    """
    config, spec = setup.config, setup.model.spec
    optimizer = make_optimizer(config, spec)
    project = setup.parametrization.project

    def loss(parameters, state: State, batch: Batch, frozen: Frozen):
        pixels = decode(setup, parameters)
        keys = jax.vmap(_key)(state.seed, state.index, state.step)
        if config.views > 1:  # of one video next to each other
            split = jax.vmap(functools.partial(jax.random.split, num=config.views))
            keys = split(keys).reshape(-1)
            pixels, batch = _repeat((pixels, batch), config.views)
        seen = jax.vmap(setup.transform)(keys, pixels)
        seen = at_octave(seen, octave, config.octave_scale)
        values, logits = _evaluate(setup, pixels, seen, batch, frozen)
        if config.views > 1:
            values, logits = _mean_of(config.views, (values, logits))
            batch = jax.tree.map(lambda x: x[:: config.views], batch)
        total = setup.objective.total(values)
        return (total * batch.weight).sum(), (values, total, logits)

    def update_step(state: State, batch: Batch, frozen: Frozen):
        (_, (values, total, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.parameters, state, batch, frozen
        )
        updates, optimizer_state = jax.vmap(optimizer.update)(gradient, state.optimizer)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.vmap(lambda one: project(one, spec))(parameters)

        gradient_norm = jax.vmap(optax.global_norm)(gradient)
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        finite = state.finite & jax.lax.pmin(finite.all(), parallel.AXIS)
        new = state.replace(
            parameters=parameters,
            optimizer=optimizer_state,
            step=state.step + 1,
            finite=finite,
        )
        old = state.replace(finite=finite)
        state = jax.tree.map(lambda a, b: _where(finite, a, b), new, old)
        confidence = jnp.take_along_axis(
            jax.nn.softmax(logits), batch.labels[:, None], axis=1
        )[:, 0]
        metrics = values | {
            "total": total,
            "confidence": confidence,
            "gradient": gradient_norm,
        }
        return state, metrics

    return update_step


def make_keep_best(setup: Setup) -> Callable[[State, Batch, Frozen], State]:
    """Keeps the parameters of a state, each video's by itself, where they are the best.

    A video is judged as it is, without any random change: by the losses of the steps,
    a lucky view would pick it.
    """

    def keep_best(state: State, batch: Batch, frozen: Frozen) -> State:
        pixels = decode(setup, state.parameters)
        values, _ = _evaluate(setup, pixels, pixels, batch, frozen)
        total = setup.objective.total(values)
        better = total < state.best_loss
        best = jax.tree.map(
            functools.partial(_where, better), state.parameters, state.best
        )
        return state.replace(
            best=best, best_loss=jnp.where(better, total, state.best_loss)
        )

    return keep_best


def decode(setup: Setup, parameters: Any) -> jax.Array:
    """The videos of parameters, (b, t, h, w, 3) pixels in [0, 1]."""
    return _decoded(setup.parametrization, setup.model.spec, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(
    parametrization: Parametrization, spec: ModelSpec, parameters: Any
) -> jax.Array:
    return jax.vmap(lambda one: parametrization.decode(one, spec))(parameters)


def _repeat(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def _mean_of(views: int, tree: Any) -> Any:
    """The mean over the views of each video, which are next to each other."""
    return jax.tree.map(lambda x: x.reshape(-1, views, *x.shape[1:]).mean(1), tree)


def _evaluate(
    setup: Setup, pixels: jax.Array, seen: jax.Array, batch: Batch, frozen: Frozen
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every raw term {name: (b,)} and the logits.

    Args:
      setup: what videos have in common.
      pixels: of the videos.
      seen: of what the models see of them.
      batch: what the videos are made for.
      frozen: weights.
    """
    model, verifier = setup.model, setup.verifier
    logits, model_taps = taps.apply(
        model.module,
        frozen.model,
        video_lib.normalize(seen, model.spec),
        model.tap_filter,
    )
    verifier_taps: dict[str, taps.Tap] = {}
    if verifier is not None:
        spec, dtype = verifier.spec, getattr(verifier.module, "dtype", None)
        # it rounds pixels to no more digits than fast products keep
        half = dtype in (jnp.bfloat16, jnp.float16)
        precision = None if half else jax.lax.Precision.HIGHEST
        shown = video_lib.fit(seen, spec.frames, spec.size, precision)
        _, verifier_taps = taps.apply(
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
    """The state before the first step, of the videos with these numbers.

    Videos start from noise of their own, or from the stimuli if `config.init` is
    "stimulus".

    Args:
      setup: what videos have in common.
      numbers: (n,) of the videos among those of their seed.
      stimuli: (n, t, h, w, 3) pixels in [0, 1], where videos start from them.
      seed: (n,), one a video; that of the settings by default.
    """
    config, spec = setup.config, setup.model.spec
    count, index = len(numbers), jnp.asarray(numbers, jnp.int32)
    seed = np.full(count, config.seed, np.uint32) if seed is None else seed
    seed = jnp.asarray(seed)
    # One more than any step, so that no step draws from the key of the noise.
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


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The run after one call of the compiled steps.

    Attributes:
      step: steps done.
      metrics: {name: (steps of the call, n)}, raw terms.
      state: fetches the whole state to the host, ready to save and to `iterate` from;
        call it before asking for the next snapshot, which reuses its memory. Of
        several processes, each fetches the videos that it holds.
      placed: the same on the devices, (devices, videos of each, ...); None after an
        error.
    """

    step: int
    metrics: dict[str, np.ndarray]
    state: Callable[[], State]
    placed: State | None = None


class NotFiniteError(RuntimeError):
    """A loss or gradient was not finite.

    `snapshot` holds the last good state, `videos` the numbers of those that were not.
    """

    def __init__(self, message: str, snapshot: Snapshot, videos: Sequence[int] = ()):
        super().__init__(message)
        self.snapshot = snapshot
        self.videos = videos


@dataclasses.dataclass(frozen=True)
class Problem(Setup):
    """A synthesis with its inputs checked and paired.

    Make one with `prepare`; the command uses it to save and resume, a notebook to
    watch.

    Attributes:
      labels: (n,) target classes.
      stimuli: (n, t, h, w, 3) pixels in [0, 1], or None where none are needed.
    """

    labels: np.ndarray
    stimuli: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    def repeated(self, copies: int) -> "Problem":
        """Each video `copies` times, next to each other, from noise of its own."""
        stimuli = self.stimuli
        return dataclasses.replace(
            self,
            labels=np.repeat(self.labels, copies),
            stimuli=None if stimuli is None else np.repeat(stimuli, copies, axis=0),
        )

    def init_state(self, numbers: np.ndarray | None = None) -> State:
        """Of the videos with these numbers; of all by default."""
        numbers = np.arange(len(self)) if numbers is None else numbers
        stimuli = self.stimuli
        if self.config.init == "stimulus":
            assert stimuli is not None
            stimuli = stimuli[numbers]
        init = jax.jit(lambda stimuli: init_state(self, numbers, stimuli))
        return init(stimuli)


def prepare(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str],
    verifier: Model | None = None,
    config: Config | None = None,
    objective: Objective | None = None,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Transform] | None = None,
) -> Problem:
    """Checks the inputs of a synthesis and pairs stimuli with labels.

    Args:
      model: the model to invert.
      stimuli: (n, t, h, w, 3) pixels in [0, 1] in the model's own frames and size, or
        None for an objective without priming.
      labels: target classes, indices or names. One stimulus may serve many labels
        and the reverse; otherwise they pair up.
      verifier: another model whose feature statistics the videos should have.
      config: settings.
      objective: what to minimise; LEAPS by default, without its diversity term
        where there is no verifier.
      parametrization: what to optimise; that of `config` by default.
      transforms: random changes that every step sees the video through, in their
        order; those of `config` by default, [] for none.

    Raises:
      UserError: the inputs do not fit together.
    """
    config = config or Config()
    spec = model.spec
    if objective is None:
        objective = objectives.leaps(config)
        if verifier is None and "diversity" in objective.weights:
            objective = objective.without("diversity")
    check_input(model)
    if not objective.terms:
        raise UserError("objective: has no terms; give at least one a weight")
    if "verifier" in objective.uses and verifier is None:
        raise UserError("verifier=None: the objective has a term that needs a verifier")
    if "verifier" not in objective.uses:
        verifier = None
    targets = np.array([spec.label_index(label) for label in labels], np.int32)
    if not len(targets):
        raise UserError("labels=[]: give at least one label")
    if stimuli is not None:
        stimuli = _checked(stimuli, spec)
        n = max(len(stimuli), len(targets))
        if not {len(stimuli), len(targets)} <= {1, n}:
            raise UserError(
                f"labels: {len(targets)} labels for {len(stimuli)} stimuli; give as"
                " many of each, or one of either"
            )
        stimuli = np.broadcast_to(stimuli, (n, *stimuli.shape[1:]))
        targets = np.broadcast_to(targets, (n,))
    elif objective.primed or config.init == "stimulus":
        raise UserError("stimuli=None: the objective starts from or is primed by one")
    setup = make_setup(model, verifier, objective, config, parametrization, transforms)
    shared = {f.name: getattr(setup, f.name) for f in dataclasses.fields(setup)}
    return Problem(**shared, labels=targets, stimuli=stimuli)


def check_input(model: Model) -> None:
    """Raises UserError where the architecture cannot take its spec's clips."""
    try:
        names = taps.tap_names(model)
    except (ValueError, TypeError) as error:
        spec, reason = model.spec, str(error).splitlines()[0]
        raise UserError(f"frames={spec.frames} size={spec.size}: {reason}") from error
    if not names:
        raise UserError(
            f"model={model.spec.name}: has no taps; give Model a tap_filter, or norm"
            " layers of leaps_jax.models.layers"
        )


def _checked(stimuli: np.ndarray, spec: ModelSpec) -> np.ndarray:
    stimuli = np.asarray(stimuli, np.float32)
    want = (spec.frames, spec.size, spec.size, 3)
    if stimuli.ndim != 5 or stimuli.shape[1:] != want or not len(stimuli):
        raise UserError(f"stimuli of shape {stimuli.shape}: must be (n, {want})")
    if not np.isfinite(stimuli).all():
        raise UserError("stimuli: some pixels are not finite; repair the clip")
    if stimuli.min() < 0 or stimuli.max() > 1:
        low, high = stimuli.min(), stimuli.max()
        raise UserError(f"stimuli: pixels from {low:g} to {high:g}; scale to [0, 1]")
    return stimuli


def prime(
    model: Model, variables: Any, stimuli: jax.Array, objective: Objective
) -> Primed:
    """What the taps are for stimuli, as far as an objective uses it."""
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


class Engine:
    """What batches of videos share: weights on the devices, and compiled functions.

    Batches of one size, whatever is in them, are compiled once.

    Args:
      setup: what the videos have in common.
      devices: all devices by default.
      programs: where compiled functions are kept from one process to the next; nowhere
        by default. Functions over several processes are never kept.
    """

    def __init__(
        self,
        setup: Setup,
        devices: Sequence[jax.Device] | None = None,
        programs: Programs | None = None,
    ):
        self.setup = setup
        self.devices = list(devices or parallel.all_devices())
        self.programs = programs
        verifier = setup.verifier
        moments = taps.target_moments(verifier) if verifier is not None else {}
        self._constants = Frozen(
            setup.model.variables, verifier and verifier.variables, dict(moments)
        )
        self._compiled: dict[tuple[Any, ...], Callable] = {}
        self._decode: Callable | None = None

    @functools.cached_property
    def frozen(self) -> Frozen:
        """Weights and moments on the devices."""
        return parallel.replicate(self._constants, self.devices)

    def place(self, problem: Problem, state: State) -> tuple[State, Batch]:
        """Primes the model for videos that are under way.

        Of several processes, each primes for and places those of its own devices.
        """
        n = len(problem)
        primed = Primed()
        held = parallel.held(n, self.devices)
        if not np.array_equal(state.index, held):
            rows = np.searchsorted(state.index, held)
            state = jax.tree.map(lambda x: np.asarray(x)[rows], state)
        if self.setup.objective.primed:
            assert problem.stimuli is not None
            _, primed = self._start(problem.stimuli[held], state.seed, state.index, n)
        labels = parallel.shard(problem.labels[held], self.devices, n)
        batch = Batch(labels, parallel.padding_weights(n, self.devices), primed)
        return parallel.shard(state, self.devices, n), batch

    def start(
        self,
        labels: np.ndarray,
        weights: np.ndarray,
        stimuli: np.ndarray | None,
        seed: np.ndarray,
        index: np.ndarray,
    ) -> tuple[State, Batch]:
        """New videos, primed: all on the devices, so that the host does not wait.

        Args:
          labels: (n,) target classes.
          weights: (n,), 1 for a video and 0 for one that fills the batch up.
          stimuli: (n, t, h, w, 3) pixels in [0, 1], or None where none are needed.
          seed: (n,), of every random draw, with
          index: (n,), the number of the video among those of its seed.
        """
        n = len(labels)
        state, primed = self._start(stimuli, seed, index, n)
        batch = parallel.shard((labels, weights.astype(np.float32)), self.devices)
        weight = batch[1] * parallel.padding_weights(n, self.devices)
        return state, Batch(batch[0], weight, primed)

    def _start(self, stimuli, seed, index, n: int) -> tuple[State, Primed]:
        inputs = (stimuli, seed.astype(np.uint32), index.astype(np.int32))
        arguments = self.frozen.model, parallel.shard(inputs, self.devices, n)
        return self._compile_start(n, *arguments)(*arguments)

    def _compile_start(self, n: int, *arguments: Any) -> Any:
        mapped = parallel.map_videos(self._starting, self.devices)
        return self._compile(("start", n), lambda: mapped, *arguments)

    def _starting(self, variables, stimuli, seed, index):
        setup, primed = self.setup, Primed()
        if setup.objective.primed:
            primed = prime(setup.model, variables, stimuli, setup.objective)
        return init_state(setup, index, stimuli, seed), primed

    def make_steps(self, steps: int, octave: int = 0) -> Any:
        """`steps` update steps in one call, and then a look at which videos are best.

        Returns:
          `(state, batch, frozen) -> (state, metrics)`, compiled at its first call.
        """
        update_step = make_update_step(self.setup, octave)
        keep_best = make_keep_best(self.setup)
        return parallel.map_steps(update_step, keep_best, steps, self.devices)

    def decode(self, parameters: Any) -> jax.Array:
        """The videos of parameters on the devices, (devices, videos of each, ...)."""
        if self._decode is None:
            self._decode = parallel.map_videos(
                lambda _, parameters: decode(self.setup, parameters), self.devices
            )
        return self._decode((), (parameters,))

    def compile(self, n: int) -> None:
        """Compiles all that `start` and `run` will call for n videos.

        It places nothing on the devices, which are all of this process. One of several
        processes does not do it: `pmap` then takes arrays alone.
        """
        if jax.process_count() > 1:
            return
        spec, clips = self.setup.model.spec, None
        if self.setup.objective.primed or self.setup.config.init == "stimulus":
            shape = (n, spec.frames, spec.size, spec.size, 3)
            clips = jax.ShapeDtypeStruct(shape, jnp.float32)
        each = functools.partial(jax.ShapeDtypeStruct, (n,))
        seed, index, labels, weight = map(each, ("uint32", "int32", "int32", "float32"))
        *inputs, labels, weight = parallel.shard_like(
            [clips, seed, index, labels, weight], self.devices
        )
        frozen = parallel.replicate_like(self._constants, self.devices)
        start = self._compile_start(n, frozen.model, tuple(inputs))
        state, primed = jax.tree.map(  # layouts are left to the next program
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            start.out_info,
        )
        batch = Batch(labels, weight, primed)
        for _, octave, steps in _calls(self.setup.config, 0):
            self._compile_steps(octave, steps, state, batch, frozen)

    def _compile_steps(
        self, octave: int, steps: int, state: State, batch: Batch, frozen: Frozen
    ) -> Callable:
        make = functools.partial(self.make_steps, steps, octave)
        what = ("steps", octave, steps, state.step.shape)
        return self._compile(what, make, state, batch, frozen)

    def _compile(
        self, what: tuple[Any, ...], make: Callable[[], Any], *arguments: Any
    ) -> Any:
        """What `make` gives, compiled for arguments like these, once."""
        if what not in self._compiled:
            function = make()
            if any(d.process_index != jax.process_index() for d in self.devices):
                compiled = compile_for(function, *arguments)
                self._compiled[what] = parallel.of_own(compiled, self.devices)
            elif self.programs is None:
                self._compiled[what] = compile_for(function, *arguments)
            else:
                setup = self.setup
                models = [m for m in (setup.model, setup.verifier) if m is not None]
                made_of = (
                    *what,
                    [(m.module, m.spec, m.tap_filter) for m in models],
                    setup.objective,
                    dataclasses.replace(setup.config, seed=0),  # the state has it
                    setup.parametrization,
                    setup.transform,
                )
                self._compiled[what] = self.programs.compiled(
                    function, arguments, self.devices, made_of
                )
        return self._compiled[what]

    def run(
        self, n: int, state: State, batch: Batch, step: int = 0
    ) -> Iterator[Snapshot]:
        """Optimises n videos from a step on; see `iterate`."""
        names = list(self.setup.objective.weights)
        held = len(parallel.held(n, self.devices))
        for done, octave, steps in _calls(self.setup.config, step):
            call = self._compile_steps(octave, steps, state, batch, self.frozen)
            state, metrics = call(state, batch, self.frozen)
            metrics = parallel.gather_metrics(metrics, n)
            metrics = {name: metrics[name] for name in (*names, *_BESIDE_TERMS)}
            fetch = functools.partial(parallel.gather, state, held)
            if not np.asarray(state.finite).all():
                raise _not_finite(done, fetch(), metrics)
            yield Snapshot(done + steps, metrics, fetch, state)


def _calls(config: Config, step: int) -> Iterator[tuple[int, int, int]]:
    """The calls of a run from a step on: (step, octave, steps)."""
    octave_steps = -(-config.steps // config.octaves)
    while step < config.steps:
        octave = config.octaves - 1 - step // octave_steps
        boundary = min(config.steps, (step // octave_steps + 1) * octave_steps)
        steps = min(config.steps_per_call, boundary - step)
        yield step, octave, steps
        step += steps


def iterate(
    problem: Problem,
    state: State | None = None,
    devices: Sequence[jax.Device] | None = None,
    programs: Programs | None = None,
) -> Iterator[Snapshot]:
    """Optimises, and yields a snapshot after every call of the compiled steps.

    Args:
      problem: from `prepare`.
      state: where to go on from; a new one by default.
      devices: all devices by default, those of other processes of `jax.distributed`
        too. The result does not depend on them.
      programs: where compiled steps are kept for the next start; nowhere by default.

    Raises:
      NotFiniteError: names the term and the step.
    """
    engine = Engine(problem, devices, programs)
    if state is None:
        state = problem.init_state(parallel.held(len(problem), engine.devices))
    step = int(state.step[0])
    yield from engine.run(len(problem), *engine.place(problem, state), step)


def _not_finite(
    step: int, state: State, metrics: dict[str, np.ndarray]
) -> NotFiniteError:
    bad = {name: ~np.isfinite(v).all(axis=1) for name, v in metrics.items()}
    row = int(np.argmax(np.stack(list(bad.values())).any(axis=0)))
    names = [name for name in bad if bad[name][row] and name not in _DERIVED]
    fine = np.isfinite([v[row] for v in metrics.values()]).all(0)
    videos = np.flatnonzero(~fine).tolist()
    good = {name: values[:row] for name, values in metrics.items()}
    state = state.replace(finite=np.ones_like(state.finite))
    return NotFiniteError(
        f"{', '.join(names)} not finite at step {step + row} for video(s)"
        f" {videos}; the state before that step is kept; lower learning_rate"
        " or that term's weight",
        Snapshot(step + row, good, lambda: state),
        videos,
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What `synthesize` returns.

    Attributes:
      videos: (n, t, h, w, 3) pixels in [0, 1], per video the best of the run.
      labels: (n,) target classes.
      metrics: {name: (steps, n)}: every raw term, `total`, `confidence`, `gradient`.
      weights: {term: weight}.
      numbers: (n,) of the videos in the run. Of several processes, each gets the
        videos of its own devices, with their labels, and the metrics of all.
    """

    videos: np.ndarray
    labels: np.ndarray
    metrics: dict[str, np.ndarray]
    weights: dict[str, float]
    numbers: np.ndarray


def best_pixels(problem: Problem, state: State) -> np.ndarray:
    """The best videos of a state as pixels in [0, 1], (n, t, h, w, 3) float32."""
    return as_pixels(problem, state.best)


def as_pixels(problem: Problem, parameters: Any) -> np.ndarray:
    """The videos of parameters as pixels in [0, 1], (n, t, h, w, 3) float32."""
    pixels = decode(problem, parameters)
    return np.clip(np.asarray(pixels, np.float32), 0, 1)


def synthesize(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str],
    verifier: Model | None = None,
    config: Config | None = None,
    objective: Objective | None = None,
    devices: Sequence[jax.Device] | None = None,
    programs: Programs | None = None,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Transform] | None = None,
) -> Result:
    """Inverts a model: videos that it sees as the labels, primed by stimuli.

    Arguments and errors are those of `prepare` and `iterate`; all processes of
    `jax.distributed` give the same.

    >>> result = synthesize(model, stimuli, ["jack"])           # doctest: +SKIP
    """
    problem = prepare(
        model, stimuli, labels, verifier, config, objective, parametrization, transforms
    )
    metrics = []
    for snapshot in iterate(problem, devices=devices, programs=programs):
        metrics.append(snapshot.metrics)
    own = parallel.own(len(problem), devices or parallel.all_devices())
    return Result(
        videos=best_pixels(problem, snapshot.state())[: len(own)],
        labels=problem.labels[own],
        metrics={
            name: np.concatenate([part[name] for part in metrics])
            for name in metrics[0]
        },
        weights=problem.objective.weights,
        numbers=own,
    )
