"""The engine: weights on the devices, and compiled functions for batches of videos."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leaps_jax import taps, update
from leaps_jax.config import Config
from leaps_jax.model import Moments
from leaps_jax.runtime import parallel
from leaps_jax.runtime.executable_cache import ExecutableCache, Traced, trace
from leaps_jax.terms import Primed
from leaps_jax.update import Batch, Frozen, Setup, State

_MORE_METRICS = ("total", "confidence", "gradient")  # besides the terms
_DERIVED = ("total", "confidence")  # not finite only where a term is not


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The run after one call of the compiled steps.

    Attributes:
      step: steps done.
      metrics: {name: (steps of the call, n)}, raw terms.
      state: fetches the state to the host, to save it or to resume from it. Call it
        before the next snapshot, whose computation reuses the memory. Each of several
        processes fetches its own videos.
      placed: the state on the devices, (devices, videos of each, ...); None after an
        error.
    """

    step: int
    metrics: dict[str, np.ndarray]
    state: Callable[[], State]
    placed: State | None = None


class NotFiniteError(RuntimeError):
    """A loss or gradient was not finite.

    Attributes:
      snapshot: of the last finite state.
      videos: numbers of the videos that were not finite.
    """

    def __init__(self, message: str, snapshot: Snapshot, videos: Sequence[int] = ()):
        super().__init__(message)
        self.snapshot = snapshot
        self.videos = videos


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A function that XLA has compiled, or still compiles in a thread.

    Attributes:
      out_info: shapes of its outputs.
      executable: of the function.
    """

    out_info: Any
    executable: Future[Callable]


class Engine:
    """Weights on the devices, and compiled functions for batches of videos.

    A function is compiled once for each size of batch.

    Args:
      setup: the models, objective and settings.
      devices: all devices by default.
      executables: where compiled steps are kept for the next start; nowhere by
        default. Those over several processes are never kept.
    """

    def __init__(
        self,
        setup: Setup,
        devices: Sequence[jax.Device] | None = None,
        executables: ExecutableCache | None = None,
    ):
        self.setup = setup
        self.devices = list(devices or parallel.all_devices())
        self.executables = executables
        verifier = setup.verifier
        moments: Moments = {}
        if verifier is not None and "verifier" in setup.objective.uses:
            moments = taps.target_moments(verifier)
        self._constants = Frozen(
            setup.model.variables, verifier and verifier.variables, dict(moments)
        )
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}
        self._compiler = ThreadPoolExecutor(1, "compile")
        self._decode: Callable | None = None

    @functools.cached_property
    def frozen(self) -> Frozen:
        """Weights and moments on the devices."""
        return parallel.replicate(self._constants, self.devices)

    def place(
        self,
        labels: np.ndarray,
        stimuli: np.ndarray | None,
        state: State | None = None,
    ) -> tuple[State, Batch]:
        """Places a state on the devices, with the batch of its videos.

        Each of several processes places the videos of its own devices.

        Args:
          labels: (n,) target classes.
          stimuli: (n, t, h, w, 3) pixels in [0, 1], or None where none are needed.
          state: of the videos, on the host; that before the first step by default.
        """
        n = len(labels)
        held = parallel.held(n, self.devices)
        primed = Primed()
        if state is None:
            seed = np.full(len(held), self.setup.config.seed)
            clips = None if stimuli is None else stimuli[held]
            placed, primed = self._start(clips, seed, held, n)
        else:
            if not np.array_equal(state.index, held):
                rows = np.searchsorted(state.index, held)
                state = jax.tree.map(lambda x: np.asarray(x)[rows], state)
            if self.setup.objective.primed:
                assert stimuli is not None
                _, primed = self._start(stimuli[held], state.seed, held, n)
            placed = parallel.shard(state, self.devices, n)
        targets = parallel.shard(labels[held], self.devices, n)
        weight = parallel.padding_weights(n, self.devices)
        return placed, Batch(targets, weight, primed)

    def start(
        self,
        labels: np.ndarray,
        weights: np.ndarray,
        stimuli: np.ndarray | None,
        seed: np.ndarray,
        index: np.ndarray,
    ) -> tuple[State, Batch]:
        """The state and batch of new videos; the host does not wait for them.

        Args:
          labels: (n,) target classes.
          weights: (n,) 1 for a video and 0 for padding.
          stimuli: (n, t, h, w, 3) pixels in [0, 1], or None where none are needed.
          seed: (n,) of the random draws.
          index: (n,) number of the video among those with its seed.
        """
        n = len(labels)
        state, primed = self._start(stimuli, seed, index, n)
        batch = parallel.shard((labels, weights.astype(np.float32)), self.devices)
        weight = batch[1] * parallel.padding_weights(n, self.devices)
        return state, Batch(batch[0], weight, primed)

    @property
    def _from_stimuli(self) -> bool:
        """Whether videos are primed by stimuli or start from them."""
        return self.setup.objective.primed or self.setup.config.init == "stimulus"

    def _start(self, stimuli, seed, index, n: int) -> tuple[State, Primed]:
        if not self._from_stimuli:
            stimuli = None
        inputs = (stimuli, seed.astype(np.uint32), index.astype(np.int32))
        arguments = self.frozen.model, parallel.shard(inputs, self.devices, n)
        return self._compile_start(n, *arguments).executable.result()(*arguments)

    def _compile_start(self, n: int, *arguments: Any) -> _Compiled:
        mapped = parallel.map_videos(self._starting, self.devices)
        return self._compile(("start", n), lambda: mapped, *arguments)

    def _starting(self, variables, stimuli, seed, index):
        setup, primed = self.setup, Primed()
        if setup.objective.primed:
            objective = setup.objective
            primed = update.prime(setup.model, variables, stimuli, objective)
        return update.init_state(setup, index, stimuli, seed), primed

    def make_steps(self, steps: int, octave: int = 0) -> Any:
        """`steps` update steps in one call.

        Returns:
          `(state, batch, frozen) -> (state, metrics)`, compiled at its first call.
        """
        update_step = update.make_update_step(self.setup, octave)
        return parallel.map_steps(update_step, steps, self.devices)

    def decode(self, parameters: Any) -> jax.Array:
        """The videos of parameters on the devices, (devices, videos of each, ...)."""
        if self._decode is None:
            self._decode = parallel.map_videos(
                lambda _, parameters: update.decode(self.setup, parameters),
                self.devices,
            )
        return self._decode((), (parameters,))

    def compile(self, n: int) -> None:
        """Compiles the functions of `start` and `run` for n videos, from shapes alone.

        With several processes it does nothing: they compile for arrays alone.
        """
        for compiled in self._compile_all(n, _calls(self.setup.config, 0)):
            compiled.executable.result()

    def begin_compile(self, n: int, step: int = 0) -> None:
        """Traces what a run of n videos from a step on needs first; XLA compiles on.

        That is the function of `start` and the next call of `run`.
        """
        following = itertools.islice(_calls(self.setup.config, step), 1)
        self._compile_all(n, following)

    def _compile_all(
        self, n: int, calls: Iterable[tuple[int, int, int]]
    ) -> list[_Compiled]:
        if jax.process_count() > 1:
            return []
        spec, clips = self.setup.model.spec, None
        if self._from_stimuli:
            shape = (n, spec.frames, spec.size, spec.size, 3)
            clips = jax.ShapeDtypeStruct(shape, jnp.float32)
        each = functools.partial(jax.ShapeDtypeStruct, (n,))
        seed, index, labels, weight = map(each, ("uint32", "int32", "int32", "float32"))
        *inputs, labels, weight = parallel.shard_like(
            [clips, seed, index, labels, weight], self.devices
        )
        frozen = parallel.replicate_like(self._constants, self.devices)
        start = self._compile_start(n, frozen.model, tuple(inputs))
        state, primed = jax.tree.map(  # the layouts are for the next compilation
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            start.out_info,
        )
        batch = Batch(labels, weight, primed)
        return [
            start,
            *[
                self._compile_steps(octave, steps, state, batch, frozen)
                for _, octave, steps in calls
            ],
        ]

    def _compile_steps(
        self, octave: int, steps: int, state: State, batch: Batch, frozen: Frozen
    ) -> _Compiled:
        make = functools.partial(self.make_steps, steps, octave)
        what = ("steps", octave, steps, state.step.shape)
        return self._compile(what, make, state, batch, frozen)

    def _compile(
        self, what: tuple[Any, ...], make: Callable[[], Any], *arguments: Any
    ) -> _Compiled:
        """Traces the function `make()` for arguments of these shapes, once.

        XLA compiles it in a thread, while Python goes on to trace the next one.
        """
        if what not in self._compiled:
            traced = self._trace(what, make(), arguments)
            executable = self._compiler.submit(traced.compile)
            self._compiled[what] = _Compiled(traced.out_info, executable)
        return self._compiled[what]

    def _trace(
        self, what: tuple[Any, ...], function: Callable, arguments: tuple[Any, ...]
    ) -> Traced:
        if any(d.process_index != jax.process_index() for d in self.devices):
            out_info, compile = trace(function, *arguments)
            return Traced(
                out_info, lambda: parallel.on_local_arrays(compile(), self.devices)
            )
        if self.executables is None:
            return trace(function, *arguments)
        setup = self.setup
        models = [m for m in (setup.model, setup.verifier) if m is not None]
        made_of = (
            *what,
            [(m.module, m.spec, m.tap_filter) for m in models],
            setup.objective,
            dataclasses.replace(setup.config, seed=0),  # it is in the state
            setup.parametrization,
            setup.transform,
        )
        return self.executables.traced(function, arguments, self.devices, made_of)

    def run(
        self, n: int, state: State, batch: Batch, step: int = 0
    ) -> Iterator[Snapshot]:
        """Optimises n videos from a step on, a snapshot per call.

        Args:
          n: number of videos, without padding.
          state: on the devices; its memory is reused.
          batch: on the devices.
          step: steps that the state has done.

        Raises:
          NotFiniteError: names the term and the step.
        """
        names = list(self.setup.objective.weights)
        held = len(parallel.held(n, self.devices))
        for done, octave, steps in _calls(self.setup.config, step):
            compiled = self._compile_steps(octave, steps, state, batch, self.frozen)
            state, metrics = compiled.executable.result()(state, batch, self.frozen)
            metrics = parallel.gather_metrics(metrics, n)
            metrics = {name: metrics[name] for name in (*names, *_MORE_METRICS)}
            fetch = functools.partial(parallel.gather, state, held)
            if not np.asarray(state.finite).all():
                raise _not_finite(done, fetch(), metrics)
            yield Snapshot(done + steps, metrics, fetch, state)


def _calls(config: Config, step: int) -> Iterator[tuple[int, int, int]]:
    """(first step, octave, steps) of each call of a run, from a step on."""
    octave_steps = -(-config.steps // config.octaves)
    while step < config.steps:
        octave = config.octaves - 1 - step // octave_steps
        boundary = min(config.steps, (step // octave_steps + 1) * octave_steps)
        steps = min(config.steps_per_call, boundary - step)
        yield step, octave, steps
        step += steps


def _not_finite(
    step: int, state: State, metrics: dict[str, np.ndarray]
) -> NotFiniteError:
    bad = {name: ~np.isfinite(v).all(axis=1) for name, v in metrics.items()}
    row = int(np.argmax(np.stack(list(bad.values())).any(axis=0)))
    names = [name for name in bad if bad[name][row] and name not in _DERIVED]
    finite = np.isfinite([v[row] for v in metrics.values()]).all(0)
    videos = np.flatnonzero(~finite).tolist()
    good = {name: values[:row] for name, values in metrics.items()}
    state = state.replace(finite=np.ones_like(state.finite))
    return NotFiniteError(
        f"{', '.join(names)} not finite at step {step + row} for video(s)"
        f" {videos}; the state before that step is kept; lower learning_rate"
        " or that term's weight",
        Snapshot(step + row, good, lambda: state),
        videos,
    )
