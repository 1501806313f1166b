"""The engine: noise videos are optimised until a frozen model sees what it should.

It knows no files, no class names and no particular model. `update_step` is one pure
function; `iterate` runs it over devices and yields a snapshot after every call;
`synthesize` is the short way to the result:

>>> result = synthesize(model, stimuli, labels=[3])             # doctest: +SKIP
>>> result.videos.shape                                         # doctest: +SKIP
(1, 4, 160, 160, 3)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax import objectives, parallel, taps, transforms
from leaps_jax import video as video_lib
from leaps_jax.config import Config, ModelSpec
from leaps_jax.errors import UserError
from leaps_jax.objectives import Context, Objective
from leaps_jax.programs import Programs, compile_for
from leaps_jax.taps import Model


class State(flax.struct.PyTreeNode):
    """What changes from step to step; the leading axis of every leaf is the video.

    Attributes:
      videos: (b, t, h, w, 3), normalised.
      optimizer: the state of optax, one a video.
      best_videos: per video, the one with the lowest loss at the end of any call.
      best_loss: (b,), that loss, of the video as it is.
      seed: (b,) and
      index: (b,) number of the video among those of its seed: with the step, the only
        sources of its randomness.
      step: (b,) steps done.
      finite: (b,), False once any loss or gradient was not finite; from then on the
        state stays as it was before that step.
    """

    videos: jax.Array
    optimizer: Any
    best_videos: jax.Array
    best_loss: jax.Array
    seed: jax.Array
    index: jax.Array
    step: jax.Array
    finite: jax.Array


class Batch(flax.struct.PyTreeNode):
    """What a video is made for: label (b,), weight (b,), primed {tap: (b, c)}."""

    labels: Any
    weight: Any
    primed: Mapping[str, Any]


class Frozen(flax.struct.PyTreeNode):
    """Constants of the compiled step: weights and the moments to match."""

    model: Any
    verifier: Any
    moments: Any


_BESIDE_TERMS = ("total", "confidence", "gradient")
_DERIVED = ("total", "confidence")
UpdateStep = Callable[[State, Batch, Frozen], tuple[State, dict[str, jax.Array]]]


def make_optimizer(config: Config, spec: ModelSpec) -> optax.GradientTransformation:
    """Adam with linear warm-up and cosine decay, on one video.

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
        optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=1e-2),
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


def augmentation(config: Config, spec: ModelSpec) -> transforms.Transform:
    """The random change of every step: spatial roll, temporal roll, flip."""
    steps = [transforms.roll(round(config.roll * spec.size))]
    if config.temporal_roll:
        steps.append(transforms.temporal_roll(config.temporal_roll))
    if config.flip:
        steps.append(transforms.flip())
    return transforms.chain(*steps)


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


def make_update_step(
    model: Model,
    verifier: Model | None,
    objective: Objective,
    config: Config,
    octave: int = 0,
) -> UpdateStep:
    """One optimisation step on the videos of one device, a pure function.

    Args:
      model: the inverted model; its weights come with `Frozen`.
      verifier: another model, or None if the objective uses none.
      objective: what is minimised.
      config: settings of the optimiser and of the random changes.
      octave: how often frames are shrunk before the network sees them.

    Returns:
      `(state, batch, frozen) -> (state, metrics)`, to be mapped over `parallel.AXIS`.
      Metrics are per video: every raw term, `total`, `confidence` (the probability
      of the class) and `gradient` (its norm).
    """
    optimizer = make_optimizer(config, model.spec)
    augment = augmentation(config, model.spec)

    def loss(videos, state: State, batch: Batch, frozen: Frozen):
        keys = jax.vmap(_key)(state.seed, state.index, state.step)
        seen = jax.vmap(augment)(keys, videos)
        seen = at_octave(seen, octave, config.octave_scale)
        values, logits = _evaluate(model, verifier, objective, seen, batch, frozen)
        total = objective.total(values)
        return (total * batch.weight).sum(), (values, total, logits)

    def update_step(state: State, batch: Batch, frozen: Frozen):
        (_, (values, total, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.videos, state, batch, frozen
        )
        updates, optimizer_state = jax.vmap(optimizer.update)(gradient, state.optimizer)
        videos = optax.apply_updates(state.videos, updates)
        videos = video_lib.clip_to_pixels(videos, model.spec)

        gradient_norm = objectives.norm(gradient.reshape(len(gradient), -1))
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        finite = state.finite & jax.lax.pmin(finite.all(), parallel.AXIS)
        new = state.replace(
            videos=videos,
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


def make_keep_best(
    model: Model, verifier: Model | None, objective: Objective
) -> Callable[[State, Batch, Frozen], State]:
    """Keeps the video of a state, each by itself, where it is the best so far.

    It is judged as it is, without any random change: by the losses of the steps, a
    lucky roll would pick the video.
    """

    def keep_best(state: State, batch: Batch, frozen: Frozen) -> State:
        values, _ = _evaluate(model, verifier, objective, state.videos, batch, frozen)
        total = objective.total(values)
        better = total < state.best_loss
        return state.replace(
            best_videos=_where(better, state.videos, state.best_videos),
            best_loss=jnp.where(better, total, state.best_loss),
        )

    return keep_best


def _evaluate(
    model: Model,
    verifier: Model | None,
    objective: Objective,
    seen: jax.Array,
    batch: Batch,
    frozen: Frozen,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every raw term {name: (b,)} and the logits for normalised videos."""
    logits, model_taps = taps.apply(model.module, frozen.model, seen, model.tap_filter)
    verifier_taps: dict[str, taps.Tap] = {}
    if verifier is not None:
        pixels = video_lib.denormalize(seen, model.spec)
        spec, dtype = verifier.spec, getattr(verifier.module, "dtype", None)
        # it rounds pixels to no more digits than fast products keep
        half = dtype in (jnp.bfloat16, jnp.float16)
        precision = None if half else jax.lax.Precision.HIGHEST
        shown = video_lib.fit(pixels, spec.frames, spec.size, precision)
        _, verifier_taps = taps.apply(
            verifier.module,
            frozen.verifier,
            video_lib.normalize(shown, verifier.spec),
            verifier.tap_filter,
        )
    context = Context(
        video=seen,
        logits=logits,
        labels=batch.labels,
        taps=model_taps,
        primed=batch.primed,
        verifier_taps=verifier_taps,
        verifier_moments=frozen.moments,
        batch_mean=parallel.batch_mean(batch.weight),
    )
    return objective.values(context), logits


def _where(chosen: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _key(seed: jax.Array, index: jax.Array, step: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), step)


def init_state(
    spec: ModelSpec,
    config: Config,
    numbers: Any,
    stimuli: Any = None,
    seed: Any = None,
) -> State:
    """The state before the first step, of the videos with these numbers.

    Videos start from noise in the model's normalised space, independent
    per video, or from the stimuli if `config.init` is "stimulus".

    Args:
      spec: of the model.
      config: settings.
      numbers: (n,) of the videos among those of their seed.
      stimuli: (n, t, h, w, 3) pixels in [0, 1], where videos start from them.
      seed: (n,), one a video; that of the settings by default.
    """
    count, index = len(numbers), jnp.asarray(numbers, jnp.int32)
    seed = np.full(count, config.seed, np.uint32) if seed is None else seed
    seed = jnp.asarray(seed)
    shape = (spec.frames, spec.size, spec.size, 3)
    if config.init == "stimulus":
        videos = video_lib.normalize(jnp.asarray(stimuli), spec)
    else:
        # One more than any step, so that no step draws from the key of the noise.
        noise = jax.vmap(
            lambda s, i: (
                config.noise * jax.random.normal(_key(s, i, config.steps), shape)
            )
        )
        videos = noise(seed, index)
    videos = video_lib.clip_to_pixels(videos, spec)
    return State(
        videos=videos,
        optimizer=jax.vmap(make_optimizer(config, spec).init)(videos),
        best_videos=videos,
        best_loss=jnp.full(count, jnp.inf),
        seed=seed,
        index=index,
        step=jnp.zeros(count, jnp.int32),
        finite=jnp.ones(count, bool),
    )


_init_state = jax.jit(init_state, static_argnums=(0, 1))


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
class Problem:
    """A synthesis with its inputs checked and paired.

    Make one with `prepare`; the command uses it to save and resume, a notebook to
    watch.
    """

    model: Model
    verifier: Model | None
    objective: Objective
    config: Config
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
        return _init_state(self.model.spec, self.config, numbers, stimuli)


def prepare(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str],
    verifier: Model | None = None,
    config: Config | None = None,
    objective: Objective | None = None,
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
    elif "stimulus" in objective.uses or config.init == "stimulus":
        raise UserError("stimuli=None: the objective starts from or is primed by one")
    return Problem(model, verifier, objective, config, targets, stimuli)


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


def prime(model: Model, variables: Any, stimuli: jax.Array) -> dict[str, jax.Array]:
    """μ(z_l(v)): the mean of every tap for stimuli, {tap: (n, c)}."""
    normalized = video_lib.normalize(stimuli, model.spec)
    _, found = taps.apply(model.module, variables, normalized, model.tap_filter)
    return {name: tap.mean() for name, tap in found.items()}


class Engine:
    """What batches of videos share: weights on the devices, and compiled functions.

    Batches of one size, whatever is in them, are compiled once.

    Args:
      model: the inverted model.
      verifier: another model, or None if the objective uses none.
      objective: what is minimised.
      config: settings.
      devices: all devices by default.
      programs: where compiled functions are kept from one process to the next; nowhere
        by default. Functions over several processes are never kept.
    """

    def __init__(
        self,
        model: Model,
        verifier: Model | None,
        objective: Objective,
        config: Config,
        devices: Sequence[jax.Device] | None = None,
        programs: Programs | None = None,
    ):
        self.model, self.verifier = model, verifier
        self.objective, self.config = objective, config
        self.devices = list(devices or parallel.all_devices())
        self.programs = programs
        moments = taps.target_moments(verifier) if verifier is not None else {}
        self._constants = Frozen(
            model.variables, verifier and verifier.variables, dict(moments)
        )
        self._compiled: dict[tuple[Any, ...], Callable] = {}

    @functools.cached_property
    def frozen(self) -> Frozen:
        """Weights and moments on the devices."""
        return parallel.replicate(self._constants, self.devices)

    def place(self, problem: Problem, state: State) -> tuple[State, Batch]:
        """Primes the model for videos that are under way.

        Of several processes, each primes for and places those of its own devices.
        """
        n = len(problem)
        primed: dict[str, Any] = {}
        held = parallel.held(n, self.devices)
        if not np.array_equal(state.index, held):
            rows = np.searchsorted(state.index, held)
            state = jax.tree.map(lambda x: np.asarray(x)[rows], state)
        if "stimulus" in self.objective.uses:
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

    def _start(self, stimuli, seed, index, n: int) -> tuple[State, dict[str, Any]]:
        inputs = (stimuli, seed.astype(np.uint32), index.astype(np.int32))
        arguments = self.frozen.model, parallel.shard(inputs, self.devices, n)
        return self._compile_start(n, *arguments)(*arguments)

    def _compile_start(self, n: int, *arguments: Any) -> Any:
        mapped = parallel.map_videos(self._starting, self.devices)
        return self._compile(("start", n), lambda: mapped, *arguments)

    def _starting(self, variables, stimuli, seed, index):
        spec, primed = self.model.spec, {}
        if "stimulus" in self.objective.uses:
            primed = prime(self.model, variables, stimuli)
        return init_state(spec, self.config, index, stimuli, seed), primed

    def make_steps(self, steps: int, octave: int = 0) -> Any:
        """`steps` update steps in one call, and then a look at which videos are best.

        Returns:
          `(state, batch, frozen) -> (state, metrics)`, compiled at its first call.
        """
        of = (self.model, self.verifier, self.objective)
        update_step = make_update_step(*of, self.config, octave)
        return parallel.map_steps(update_step, make_keep_best(*of), steps, self.devices)

    def compile(self, n: int) -> None:
        """Compiles all that `start` and `run` will call for n videos.

        It places nothing on the devices, which are all of this process. One of several
        processes does not do it: `pmap` then takes arrays alone.
        """
        if jax.process_count() > 1:
            return
        spec, clips = self.model.spec, None
        if "stimulus" in self.objective.uses or self.config.init == "stimulus":
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
        for _, octave, steps in _calls(self.config, 0):
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
                models = [m for m in (self.model, self.verifier) if m is not None]
                made_of = (
                    *what,
                    [(m.module, m.spec, m.tap_filter) for m in models],
                    self.objective,
                    dataclasses.replace(self.config, seed=0),  # the state has it
                )
                self._compiled[what] = self.programs.compiled(
                    function, arguments, self.devices, made_of
                )
        return self._compiled[what]

    def run(
        self, n: int, state: State, batch: Batch, step: int = 0
    ) -> Iterator[Snapshot]:
        """Optimises n videos from a step on; see `iterate`."""
        names = list(self.objective.weights)
        held = len(parallel.held(n, self.devices))
        for done, octave, steps in _calls(self.config, step):
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
    of = (problem.model, problem.verifier, problem.objective, problem.config)
    engine = Engine(*of, devices, programs)
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
    pixels = video_lib.denormalize(jnp.asarray(state.best_videos), problem.model.spec)
    return np.clip(np.asarray(pixels), 0, 1)


def synthesize(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str],
    verifier: Model | None = None,
    config: Config | None = None,
    objective: Objective | None = None,
    devices: Sequence[jax.Device] | None = None,
    programs: Programs | None = None,
) -> Result:
    """Inverts a model: videos that it sees as the labels, primed by stimuli.

    Arguments and errors are those of `prepare` and `iterate`; all processes of
    `jax.distributed` give the same.

    >>> result = synthesize(model, stimuli, ["jack"])           # doctest: +SKIP
    """
    problem = prepare(model, stimuli, labels, verifier, config, objective)
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
