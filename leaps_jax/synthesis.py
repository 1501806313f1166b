"""Synthesis: noise is optimised until a frozen model sees a class in it.

>>> result = synthesize(model, stimuli, labels=[3])             # doctest: +SKIP
>>> result.videos.shape                                         # doctest: +SKIP
(1, 4, 160, 160, 3)

`synthesize` is `prepare`, which checks the inputs, and `iterate`, which yields a
snapshot after every call of the compiled steps.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from leaps_jax import objectives, taps, update
from leaps_jax.config import Config
from leaps_jax.errors import UserError
from leaps_jax.model import Model, ModelSpec
from leaps_jax.parametrizations import Parametrization
from leaps_jax.progress import bar, in_notebook
from leaps_jax.result import Result
from leaps_jax.runtime import multihost, parallel
from leaps_jax.runtime.engine import Engine, Snapshot
from leaps_jax.runtime.executable_cache import ExecutableCache
from leaps_jax.terms import Context, Objective
from leaps_jax.transforms import Transform
from leaps_jax.update import Setup, State


@dataclasses.dataclass(frozen=True)
class Problem(Setup):
    """A synthesis with its inputs checked and paired.

    Make one with `prepare`; the command uses it to save and resume, a notebook to
    watch.

    Attributes:
      labels: (n,) target classes, -1 for none.
      stimuli: (n, t, h, w, 3) pixels in [0, 1], or None where none are needed.
    """

    labels: np.ndarray
    stimuli: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> list[str | None]:
        """The class of each video, None for a video without one."""
        classes = self.model.spec.classes
        return [classes[label] if label >= 0 else None for label in self.labels]

    @property
    def names(self) -> list[str]:
        """The class of each video, or what the objective looks at if it has none."""
        return [target or self.objective.title for target in self.targets]

    def repeated(self, copies: int) -> "Problem":
        """Each video `copies` times; copies are adjacent and start from other noise."""
        stimuli = self.stimuli
        return dataclasses.replace(
            self,
            labels=np.repeat(self.labels, copies),
            stimuli=None if stimuli is None else np.repeat(stimuli, copies, axis=0),
        )

    def init_state(self, numbers: np.ndarray | None = None) -> State:
        """The initial state of the videos with these numbers, of all by default."""
        numbers = np.arange(len(self)) if numbers is None else numbers
        stimuli = self.stimuli
        if self.config.init == "stimulus":
            assert stimuli is not None
            stimuli = stimuli[numbers]
        init = jax.jit(lambda stimuli: update.init_state(self, numbers, stimuli))
        return init(stimuli)


def prepare(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str] | None = None,
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
        and the reverse; otherwise they pair up. None for an objective that looks at
        no class, such as `objectives.channel`: a video for each stimulus, or one.
      verifier: another model whose feature statistics the videos should have.
      config: settings.
      objective: what to minimise; LEAPS by default, without the diversity term if
        there is no verifier.
      parametrization: what to optimise; that of `config` by default.
      transforms: random changes of the video that the models see, in order; those of
        `config` by default, [] for none.

    Raises:
      UserError: the inputs do not fit together.

    >>> len(prepare(model, stimuli, ["jack", "run"]))           # doctest: +SKIP
    2
    """
    config = config or Config()
    spec = model.spec
    if objective is None:
        objective = objectives.leaps(config)
        if verifier is None:
            objective = objective.without_verifier()
    check_input(model, tapped=objective.primed or "tap" in objective.uses)
    if not objective.terms:
        raise UserError("objective: has no terms; give at least one a weight")
    _check_terms(model, objective)
    if objective.verified and verifier is None:
        raise UserError("verifier=None: the objective has a term that needs a verifier")
    if not objective.verified:
        verifier = None
    if verifier is not None and "verifier logits" in objective.uses:
        _check_same_classes(model, verifier)
    if labels is None:
        if "label" in objective.uses:
            raise UserError("labels=None: the objective has a term that needs a class")
        labels = [_NO_CLASS]
    elif isinstance(labels, str):
        raise UserError(f"labels={labels!r}: is one label; write [{labels!r}]")
    else:
        labels = [spec.label_index(label) for label in labels]
    targets = np.array(labels, np.int32)
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
    setup = update.make_setup(
        model, verifier, objective, config, parametrization, transforms
    )
    shared = {f.name: getattr(setup, f.name) for f in dataclasses.fields(setup)}
    return Problem(**shared, labels=targets, stimuli=stimuli)


_NO_CLASS = -1


def _check_same_classes(model: Model, verifier: Model) -> None:
    if model.spec.classes != verifier.spec.classes:
        raise UserError(
            f"verifier={verifier.spec.name}: its classes are not those of"
            f" {model.spec.name}, in the same order; take one with the same classes"
        )


def check_input(model: Model, tapped: bool = True) -> None:
    """Raises UserError where the architecture cannot take its spec's clips.

    Args:
      model: to check.
      tapped: also where it has no taps.
    """
    try:
        names = taps.tap_names(model)
    except (ValueError, TypeError) as error:
        spec, reason = model.spec, str(error).splitlines()[0]
        raise UserError(f"frames={spec.frames} size={spec.size}: {reason}") from error
    if tapped and not names:
        raise UserError(
            f"model={model.spec.name}: has no taps; give Model a tap_filter, or norm"
            " layers of leaps_jax.models.layers"
        )


def _check_terms(model: Model, objective: Objective) -> None:
    """Raises UserError where a term looks at what the model does not have.

    Nothing is computed. Terms that need a stimulus or a verifier are left out: what
    they get is known only when it is prepared.
    """
    spec = model.spec
    shape = (1, spec.frames, spec.size, spec.size, 3)
    video = jax.ShapeDtypeStruct(shape, np.float32)
    labels = jax.ShapeDtypeStruct((1,), np.int32)

    def look(variables, video, labels):
        logits, seen = taps.apply(model.module, variables, video, model.tap_filter)
        for _, term in objective.terms:
            if term.uses <= {"tap", "label"}:
                try:
                    term.loss(Context(video, logits, labels, seen))
                except UserError:
                    raise
                except Exception:  # it may be right for another number of videos
                    continue

    jax.eval_shape(look, model.variables, video, labels)


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


def iterate(
    problem: Problem,
    state: State | None = None,
    devices: Sequence[jax.Device] | None = None,
    executables: ExecutableCache | None = None,
) -> Iterator[Snapshot]:
    """Optimises, and yields a snapshot after every call of the compiled steps.

    Args:
      problem: from `prepare`.
      state: to resume from; a new one by default.
      devices: those of all processes of `jax.distributed` by default. The result does
        not depend on them.
      executables: where compiled steps are kept for the next start; nowhere by default.

    Raises:
      NotFiniteError: names the term and the step.

    >>> for snapshot in iterate(prepare(model, stimuli, ["jack"])):  # doctest: +SKIP
    ...     print(snapshot.step, snapshot.metrics["total"][-1])
    """
    engine = Engine(problem, devices, executables)
    step = 0 if state is None else int(state.step[0])
    engine.begin_compile(len(problem), step)
    placed = engine.place(problem.labels, problem.stimuli, state)
    yield from engine.run(len(problem), *placed, step)


def as_pixels(problem: Problem, parameters: Any) -> np.ndarray:
    """The videos of parameters as pixels in [0, 1], (n, t, h, w, 3) float32."""
    pixels = update.decode(problem, parameters)
    return np.clip(np.asarray(pixels, np.float32), 0, 1)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a synthesis is.

    Attributes:
      step: steps done.
      steps: of the whole synthesis.
      metrics: {name: (n,)} of each video at the last step: every raw term, `total`,
        `confidence`, `gradient`.
      videos: gives the videos as they are, (n, t, h, w, 3) pixels in [0, 1]. Call it
        before the function that got this returns; the next steps reuse the memory.
    """

    step: int
    steps: int
    metrics: dict[str, np.ndarray]
    videos: Callable[[], np.ndarray]


#: What is told of the progress: to a function, on a bar (True), on a bar where a
#: notebook shows it ("notebook"), or not at all.
Report = Callable[[Progress], object] | bool | Literal["notebook"] | None


def synthesize(
    model: Model,
    stimuli: np.ndarray | None,
    labels: Sequence[int | str] | None = None,
    verifier: Model | None = None,
    config: Config | None = None,
    objective: Objective | None = None,
    devices: Sequence[jax.Device] | None = None,
    executables: ExecutableCache | None = None,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Transform] | None = None,
    progress: Report = "notebook",
) -> Result:
    """Inverts a model: makes videos that it sees as the labels, primed by stimuli.

    All processes of `jax.distributed` must call it with the same arguments.

    Args:
      model: the model to invert.
      stimuli: (n, t, h, w, 3) pixels in [0, 1] in the model's own frames and size, or
        None for an objective without priming.
      labels: target classes, indices or names; see `prepare`. None for an objective
        that looks at no class, such as `objectives.channel`.
      verifier: another model whose feature statistics the videos should have.
      config: settings.
      objective: what to minimise; LEAPS by default.
      devices: those of all processes by default. The result does not depend on them.
      executables: where compiled steps are kept for the next start; nowhere by default.
      parametrization: what to optimise; that of `config` by default.
      transforms: random changes of the video that the models see; those of `config`
        by default, [] for none.
      progress: a function that gets a `Progress` after every call of the compiled
        steps, `config.steps_per_call` of them; True for a bar; False or None for
        nothing. By default there is a bar in a notebook and nothing elsewhere. The
        result does not depend on it.

    Raises:
      UserError: the inputs do not fit together.
      NotFiniteError: a loss or gradient was not finite; names the term and the step.

    >>> def told(now):
    ...     print(f"{now.step} of {now.steps}: {now.metrics['confidence']}")
    >>> result = synthesize(model, stimuli, ["jack"], progress=told)  # doctest: +SKIP
    50 of 200: [0.31]
    """
    problem = prepare(
        model, stimuli, labels, verifier, config, objective, parametrization, transforms
    )
    own = parallel.own(len(problem), devices or parallel.all_devices())

    def shown(snapshot: Snapshot) -> np.ndarray:
        return as_pixels(problem, snapshot.state().parameters)[: len(own)]

    metrics = []
    with _reporting(progress, problem.config.steps) as report:
        for snapshot in iterate(problem, devices=devices, executables=executables):
            metrics.append(snapshot.metrics)
            last = {name: values[-1] for name, values in snapshot.metrics.items()}
            videos = functools.partial(shown, snapshot)
            report(Progress(snapshot.step, problem.config.steps, last, videos))
    return Result(
        videos=shown(snapshot),
        labels=problem.labels[own],
        metrics={
            name: np.concatenate([part[name] for part in metrics])
            for name in metrics[0]
        },
        weights=problem.objective.weights,
        numbers=own,
        names=tuple(problem.names[number] for number in own),
        spec=model.spec,
        stimuli=None if problem.stimuli is None else problem.stimuli[own],
    )


@contextlib.contextmanager
def _reporting(report: Report, steps: int) -> Iterator[Callable[[Progress], object]]:
    """The function that is told of the progress."""
    if callable(report):
        yield report
    elif report not in (True, False, None, "notebook"):
        raise UserError(
            f"progress={report!r}: must be a function, True, False or 'notebook'"
        )
    elif not multihost.first() or not (report is True or (report and in_notebook())):
        yield lambda now: None
    else:
        with bar("synthesize", steps) as update:

            def show(now: Progress) -> None:
                shown = {name: now.metrics[name].mean() for name in _ON_BAR}
                update(now.step, shown)

            yield show


_ON_BAR = ("total", "confidence")
