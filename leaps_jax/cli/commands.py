"""The command `leaps-jax`: reads arguments, calls the library, prints what came of it.

Exit codes: 0 for success, 2 for a mistake of the user's (one line that names the
argument, its value and the remedy), 1 when a run failed, 130 after Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaps_jax import (
    attacks,
    bench,
    evaluation,
    objectives,
    parametrizations,
    synthesis,
    taps,
    training,
)
from leaps_jax.actions import dataset, gallery, motions, scenes
from leaps_jax.cli import arguments
from leaps_jax.config import Config, preset
from leaps_jax.data import stimuli
from leaps_jax.errors import UserError, nearest, out_of_memory
from leaps_jax.evaluation import comparison, page, tables
from leaps_jax.model import Model, ModelSpec, Moments
from leaps_jax.progress import Steps, interruptible
from leaps_jax.runs import folder as runs
from leaps_jax.runs import jobs
from leaps_jax.runtime import executable_cache, multihost
from leaps_jax.runtime.engine import NotFiniteError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints
from leaps_jax.zoo import load as loading


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = argparse.Namespace(command=None)
    try:
        options = arguments.parser().parse_args(words)
        options.words = sys.argv[1:] if words is None else words
        _use_compilation_cache()
        return _COMMANDS[options.command](options)
    except UserError as error:
        print(f"leaps-jax: error: {error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"leaps-jax: failed: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        line = _too_large(options, error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leaps-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


_TOO_LARGE = {
    "train": ("batch", "lower it, --frames or --size"),
    "accuracy": ("batch", "lower it"),
    "bench": ("batch", "lower it, or use --remat"),
    "synthesize": (
        "copies",
        "lower it, give fewer stimuli, use --remat, or --jobs with a --batch",
    ),
    "jobs": ("batch", "lower it, or use --remat"),
}


def _too_large(options: argparse.Namespace, error: BaseException) -> str | None:
    """An out-of-memory error as one line; None for any other error."""
    if not out_of_memory(error):
        return None
    command = "jobs" if getattr(options, "jobs", None) else options.command
    argument, remedy = _TOO_LARGE.get(command, ("memory", ""))
    if argument == "memory":
        said = "does not suffice; end other programs, or take a smaller model"
    else:
        given = _given(getattr(options, argument), arguments.BATCH)
        said, argument = f"does not fit the memory; {remedy}", f"{argument}={given}"
    return f"leaps-jax: error: {argument}: {said}"


def _use_compilation_cache() -> None:
    """Keeps compiled steps on disk, so that the second start of a job is quick."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "leaps_jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _programs() -> executable_cache.ExecutableCache | None:
    """The steps themselves, which JAX's cache finds only after a trace."""
    folder = executable_cache.folder()
    return executable_cache.ExecutableCache(folder / "programs") if folder else None


def _models(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(zoo.table(), indent=1))
    elif options.markdown:
        print(zoo.markdown())
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(_models_table())
        console.print("\nPublic weights:")
        for row in zoo.table():
            for address in row["weights"]:
                console.print(f" {row['name']:<20} {address}", soft_wrap=True)
    return 0


def _models_table() -> Table:
    table = Table(box=None, header_style="bold")
    for column in zoo.COLUMNS:
        numeric = column in ("parameters", "GMACs", "taps")
        justify: Any = "right" if numeric else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for row in zoo.cells():
        table.add_row(*row)
    return table


def _convert(options: argparse.Namespace) -> int:
    if options.name:
        zoo.entry(options.name)
    checkpoints.check_vacant(options.out, options.overwrite)
    try:
        model = loading.convert(options.name, options.source)
    except UserError as error:
        reason = str(error).removeprefix(f"{options.source}: ")
        raise UserError(f"source={options.source!r}: {reason}") from None
    if options.moments:
        with Steps("read", unit="clips", waiting="", brief=True) as steps:
            clips, _ = stimuli.load_labelled(
                options.moments,
                model.spec,
                short="loop",
                progress=lambda done, total: steps.update(done, total=total),
                argument="moments",
            )
        model = dataclasses.replace(model, moments=_moments(model, clips))
    loading.save(model, options.out, overwrite=options.overwrite)
    print(f"wrote {options.out}; use it as --model {model.spec.name}@{options.out}")
    return 0


def _moments(model: Model, clips: np.ndarray) -> Moments:
    first = multihost.first()
    with Steps("moments", len(clips), 0, first, "clips", brief=True) as steps:
        return taps.estimate_moments(model, clips, progress=steps.update)


def _synthesize(options: argparse.Namespace) -> int:
    if options.jobs:
        return _jobs(options)
    for name in ("batch", "shard"):
        if getattr(options, name) is not None:
            given = f"{name}={getattr(options, name)}"
            raise UserError(f"{given}: is for --jobs; leave it out")
    config = _config(options)
    multihost.join(options.coordinator, options.processes, options.process)
    told = functools.partial(_too_large, options)
    with multihost.leaving(NotFiniteError, told=told):
        return _synthesize_here(options, config)


def _synthesize_here(options: argparse.Namespace, config: Config) -> int:
    """The part of this process; there may be others."""
    with multihost.together():
        problem, settings, judges, notes = _problem(options, config)
        before = runs.check(options.out, problem, settings, overwrite=options.overwrite)
    was_finished = before is not None and before["status"] == "finished"
    for note in notes if multihost.first() and not was_finished else ():
        _say(note)
    record = runs.execute(
        options.out,
        problem,
        settings,
        judges,
        overwrite=options.overwrite,
        save_every=options.save_every,
        preview_every=options.preview_every,
        programs=_programs(),
    )
    stopped = record["status"] == "stopped"
    if not multihost.first():
        return 130 if stopped else 0
    if stopped:
        _say(
            f"stopped at step {record['step']}; the same command resumes {options.out}"
        )
        return 130
    if was_finished:
        print(f"{options.out} is finished; --overwrite starts it again")
    for role, verdict in record["judges"].items():
        print(
            f"{role} ({verdict['model']}) sees {verdict['correct']} of"
            f" {verdict['of']} as their class"
        )
    if "videos_not_written" in record:
        _say(f"no mp4 files: {record['videos_not_written']}")
    print(f"results: {options.out / 'index.html'}")
    return 0


def _problem(
    options: argparse.Namespace, config: Config
) -> tuple[synthesis.Problem, dict[str, Any], dict[str, Model], list[str]]:
    """What to run, the settings that define it, the judges, and what to tell."""
    objective = objectives.METHODS[options.method](config)
    needs_stimulus = objective.primed or config.init == "stimulus"
    if needs_stimulus and not options.stimulus:
        raise UserError(
            f"stimulus: missing, and --method {options.method} starts from or is primed"
            " by one; give a clip, or --method activation_maximization"
        )
    notes: list[str] = []
    model = _load("model", options.model, options)
    verifier = None
    if options.verifier:
        verifier = _load("verifier", options.verifier, options)
    spec = dataclasses.replace(
        model.spec,
        frames=_given(options.frames, model.spec.frames),
        size=_given(options.size, model.spec.size),
        stride=_given(options.stride, model.spec.stride),
    )
    model = dataclasses.replace(model, spec=spec)
    synthesis.check_input(model)
    clips, labels = _stimuli_and_labels(options, model)
    if "verifier" in objective.uses and verifier is None:
        objective = objective.without_verifier()
        notes.append("no --verifier: the diversity term is off")
    if verifier is not None and "verifier" in objective.uses:
        verifier = _with_moments(verifier, options, notes)
    problem = synthesis.prepare(model, clips, labels, verifier, config, objective)
    problem = problem.repeated(options.copies)
    judges = {"self": model} | ({"verifier": verifier} if verifier else {})
    judges |= {name: _load("judge", name, options) for name in options.judge}
    names = ("model", "verifier", "method", "stimulus", "copies", "short", "dtype")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    settings |= {
        "labels": problem.labels.tolist(),
        "frames": spec.frames,
        "size": spec.size,
        "stride": spec.stride,
        "config": dataclasses.asdict(config),
    }
    return problem, settings, judges, notes


_NOT_WITH_JOBS = {
    **dict.fromkeys(
        ("verifier", "stimulus", "label", "copies", "seed"),
        "every row gives its own; make it a column",
    ),
    "coordinator": "no process waits for another; leave it out",
    "judge": "leave it out",
    "save_every": "rows are saved as they finish; leave it out",
    "preview_every": "leave it out",
    "overwrite": "rows are never written twice; choose another folder",
}


def _jobs(options: argparse.Namespace) -> int:
    words = ["synthesize", "--jobs", str(options.jobs), "--out", str(options.out)]
    defaults = arguments.parser().parse_args(words)
    for name, remedy in _NOT_WITH_JOBS.items():
        given = getattr(options, name)
        if given != getattr(defaults, name):
            values = given if isinstance(given, list) else [given]
            words = [str(value) for value in values if value is not True]
            flag = shlex.join(["--" + name.replace("_", "-"), *words])
            raise UserError(f"{flag}: not together with --jobs; {remedy}")
    if any(text.partition("=")[0] == "seed" for text in options.set):
        remedy = _NOT_WITH_JOBS["seed"]
        raise UserError(f"--set seed: not together with --jobs; {remedy}")
    shard = options.shard
    if shard is None and None not in (options.process, options.processes):
        shard = f"{options.process + 1}/{options.processes}"
    shared = ("method", "frames", "size", "stride", "short", "dtype", "remat")
    record = jobs.execute(
        options.jobs,
        options.out,
        jobs.Settings(
            config=_config(options),
            data_dir=options.data_dir,
            **{name: getattr(options, name) for name in shared},
        ),
        _given(options.batch, arguments.BATCH),
        jobs.Shard.parse(shard),
        _programs(),
    )
    if record["failed"] and not record["finished"] + record["done_before"]:
        if all(line.endswith(jobs.TOO_LARGE) for line in record["errors"]):
            raise MemoryError
    for line in record["errors"]:
        _say(line)
    if record["failed"]:
        rows = "row" if record["failed"] == 1 else "rows"
        _say(f"{record['failed']} {rows} failed: {options.out / record['failures']}")
    if record["batches"] > 1:
        idle = f"{record['idle_share']:.2%} of the time after the first batch"
        _say(f"{record['batches']} batches; devices waited for {idle}")
    done = record["done_before"] + record["finished"]
    print(f"results: {done} of {record['rows']} rows in {options.out / 'rows'}")
    if record["status"] == "stopped":
        _say(f"stopped; the same command goes on with {options.out}")
        return 130
    return 1 if record["failed"] else 0


def _config(options: argparse.Namespace) -> Config:
    if options.method not in objectives.METHODS:
        hint = nearest(options.method, objectives.METHODS)
        raise UserError(f"method={options.method!r}: unknown; {hint}")
    if options.copies < 1:
        raise UserError(f"copies={options.copies}: must be at least 1")
    _check_parametrization(options)
    if any(text.partition("=")[0] == "parametrization" for text in options.set):
        raise UserError(
            "--set parametrization: has settings of its own; write --parametrization"
        )
    numbers = {"steps": options.steps, "seed": options.seed}
    changes = {name: value for name, value in numbers.items() if value is not None}
    config = preset(options.method, options.parametrization, **changes)
    config = config.updated(options.set)
    parametrizations.from_config(config)  # refuses settings that do not go together
    return config


def _check_parametrization(options: argparse.Namespace) -> None:
    if options.parametrization not in parametrizations.PARAMETRIZATIONS:
        hint = nearest(options.parametrization, parametrizations.PARAMETRIZATIONS)
        given = f"parametrization={options.parametrization!r}"
        raise UserError(f"{given}: unknown; {hint}")


def _load(argument: str, reference: str, options: argparse.Namespace) -> Model:
    return loading.load_model(
        reference, dtype=options.dtype, remat=options.remat, argument=argument
    )


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _stimuli_and_labels(
    options: argparse.Namespace, model: Model
) -> tuple[np.ndarray | None, list[int | str]]:
    if not options.stimulus:
        if not options.label:
            raise UserError("label: missing; name the classes to synthesise")
        return None, options.label
    first = multihost.first()
    with Steps("read", shown=first, unit="clips", waiting="", brief=True) as steps:
        clips, folders = stimuli.load_labelled(
            options.stimulus,
            model.spec,
            short=options.short,
            progress=lambda done, total: steps.update(done, total=total),
            data_dir=options.data_dir,
        )
    labels = options.label or [name for name in folders if name is not None]
    if len(labels) != len(clips) and not options.label:
        raise UserError(
            "label: missing, and not every stimulus lies in a <class>/<clip> tree; name"
            " the classes to synthesise"
        )
    return clips, labels


def _with_moments(
    verifier: Model, options: argparse.Namespace, notes: list[str]
) -> Model:
    """A verifier without batch norm gets its target moments from the stimuli."""
    try:
        taps.target_moments(verifier)
        return verifier
    except UserError:
        if not options.stimulus:
            raise UserError(
                f"verifier={options.verifier!r}: has no batch norm and no stored"
                " statistics; store some with `convert --moments DIR`, or give a"
                " --stimulus to estimate them from"
            ) from None
    clips, _ = stimuli.load_labelled(
        options.stimulus, verifier.spec, short="loop", data_dir=options.data_dir
    )
    notes.append(
        f"verifier {verifier.spec.name} has no stored statistics: estimated from"
        f" {len(clips)} stimuli; `convert --moments DIR` stores better ones"
    )
    return dataclasses.replace(verifier, moments=_moments(verifier, clips))


def _train(options: argparse.Namespace) -> int:
    name = options.model or options.start.partition("@")[0]
    zoo.entry(name)
    checkpoints.check_vacant(options.out, options.overwrite)
    recipe = training.Recipe(
        steps=options.steps,
        batch=options.batch,
        seed=options.seed,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        flip=options.flip,
        evaluations=options.evaluations,
        hints=options.hints,
        **_robust(options),
    )
    if options.flip and options.data in scenes.RENDERED:
        raise UserError(
            f"flip: a mirror changes classes of {options.data}; leave it out"
        )
    if options.hints and options.data not in scenes.RENDERED:
        raise UserError(
            f"hints={options.hints}: joints of {options.data} are not known; leave it"
            f" out, or train on {' or '.join(scenes.RENDERED)}"
        )
    # All that can be refused is refused before the clips are read.
    classes = _classes("data", options)
    if options.eval_data:
        _check_known("eval_data", _classes("eval_data", options), classes, options)
    clip = {"frames": options.frames, "size": options.size, "stride": options.stride}
    if options.start:
        started = loading.load_model(
            options.start, dtype=options.dtype, argument="from"
        )
        model = loading.for_classes(started, classes, **clip, seed=options.seed)
    else:
        model = loading.initialize(
            name, classes, **clip, dtype=options.dtype, seed=options.seed
        )
    synthesis.check_input(model)
    data = _data("data", options, model.spec, 256)  # of which moments are estimated
    held_out = None
    if options.eval_data:
        held_out = _same_classes(_data("eval_data", options, model.spec, 2000), classes)
    if isinstance(data, training.Clips):
        _say(f"{len(data.videos)} clips of {len(data.classes)} classes")
    began, report = time.monotonic(), None
    with Steps("train", recipe.steps) as steps, interruptible() as stop:
        evaluating = _Evaluating(steps, held_out)
        of = (model, data, held_out, recipe)
        for report in training.train(*of, progress=evaluating.update):
            numbers = {"loss": report.loss, "train accuracy": report.train_accuracy}
            steps.update(report.step, numbers)
            if report.accuracy is not None:
                steps.say(f"step {report.step}: accuracy {report.accuracy:.1%}")
            if report.robust_accuracy is not None:
                steps.say(f"under attack {report.robust_accuracy:.1%}")
            if stop:
                break
    assert report is not None
    with Steps("moments", unit="clips", brief=True) as steps:
        trained = training.with_moments(report.model, data, progress=steps.update)
    record: dict[str, Any] = {
        "command": shlex.join(["leaps-jax", *options.words]),
        "recipe": dataclasses.asdict(recipe),
        "versions": runs.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "seconds": round(time.monotonic() - began, 1),
        "data": options.data,
        "steps": report.step,
        "eval_data": options.eval_data,
        "accuracy": report.accuracy,
        "robust_accuracy": report.robust_accuracy,
    }
    loading.save(trained, options.out, overwrite=options.overwrite, extra=record)
    print(f"wrote {options.out}; use it as --model {name}@{options.out}")
    if stop:
        _say(f"stopped at step {report.step} of {recipe.steps}")
        return 130
    return 0


_ATTACK = ("steps", "step", "start", "restarts")


def _robust(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a recipe that `--robust` sets."""
    given = {"attack_warmup": options.attack_warmup}
    if attack := _attack("robust", attacks.Attack, options):
        given["attack"] = attack
    elif options.attack_warmup is not None:
        raise UserError("attack-warmup: is for --robust; leave it out")
    return {name: value for name, value in given.items() if value is not None}


def _attack(
    argument: str,
    default: Callable[[float], attacks.Attack],
    options: argparse.Namespace,
) -> attacks.Attack | None:
    """The attack whose radius is an argument, None where that is not given."""
    radius = getattr(options, argument)
    given: dict[str, Any] = {
        name: value
        for name in _ATTACK
        if (value := getattr(options, f"attack_{name}", None)) is not None
    }
    if radius is None:
        for name in given:
            raise UserError(f"attack-{name}: is for --{argument}; leave it out")
        return None
    if not 0 < radius < float("inf"):
        raise UserError(
            f"{argument}={radius:g}: must be a positive radius, in units of pixels in"
            " [0, 1] over a whole clip; 3 is usual for 16 frames of 80 to 112 pixels"
        )
    try:
        return dataclasses.replace(default(radius), **given)
    except UserError as error:
        raise UserError(f"attack-{error}") from None


class _Evaluating:
    """A progress line for each evaluation during training, removed at its end."""

    def __init__(self, steps: Steps, data: training.Data | None):
        self._steps, self._data = steps, data
        self._part = contextlib.ExitStack()
        self._waiting = "compiling"  # once

    def update(self, step: int, clips: int) -> None:
        """Reports that an evaluation after `step` steps is done with `clips`."""
        assert self._data is not None
        if clips == 0:
            self._steps.update(step)
            part = self._steps.part(
                "evaluate", len(self._data.labels), "clips", self._waiting
            )
            self._shown = self._part.enter_context(part)
            return
        self._shown.update(clips)
        if clips == len(self._data.labels):
            self._part.close()
            self._waiting = ""


def _data(
    argument: str, options: argparse.Namespace, spec: ModelSpec, count: int
) -> training.Clips | training.Renderings:
    source = getattr(options, argument)
    if source in scenes.RENDERED:
        draw = functools.partial(
            scenes.RENDERED[source],
            frames=spec.frames,
            size=spec.size,
            fps=stimuli.FPS / spec.stride,
        )
        return training.Renderings(draw, motions.CLASSES, len(motions.JOINTS), count)
    with Steps("read", unit="clips", waiting="", brief=True) as steps:
        return training.Clips(
            *stimuli.read_tree(
                source,
                round(spec.size * 8 / 7),
                progress=lambda done, total: steps.update(done, total=total),
                data_dir=options.data_dir,
                argument=argument.replace("_", "-"),
            )
        )


def _classes(argument: str, options: argparse.Namespace) -> tuple[str, ...]:
    source = getattr(options, argument)
    if source in scenes.RENDERED:
        return motions.CLASSES
    return stimuli.class_names(
        source, data_dir=options.data_dir, argument=argument.replace("_", "-")
    )


def _check_known(
    argument: str,
    found: tuple[str, ...],
    classes: tuple[str, ...],
    options: argparse.Namespace,
) -> None:
    for name in found:
        if name not in classes:
            given = f"{argument.replace('_', '-')}={getattr(options, argument)!r}"
            raise UserError(
                f"{given}: its class {name!r} is not one of the model's; rename or"
                f" remove it ({nearest(name, classes)})"
            )


def _same_classes(
    data: training.Clips | training.Renderings, classes: tuple[str, ...]
) -> training.Data:
    """The data with labels that index `classes`."""
    if data.classes == classes:
        return data
    if isinstance(data, training.Renderings):
        raise UserError(
            f"data: renderings are of the {len(data.classes)} synthetic actions, and"
            f" the model has {len(classes)} classes; take another model or data"
        )
    index = np.array([classes.index(name) for name in data.classes])
    return training.Clips(data.videos, index[data.labels], classes)


def _accuracy(options: argparse.Namespace) -> int:
    attack = _attack("attack", lambda r: attacks.Attack(r).strong(), options)
    for name in ("batch", "attack_clips"):
        value = getattr(options, name)
        if value < 1:
            given = f"{name.replace('_', '-')}={value}"
            raise UserError(f"{given}: must be at least 1")
    model = loading.load_model(options.model, dtype=options.dtype)
    _check_known("data", _classes("data", options), model.spec.classes, options)
    data = _same_classes(_data("data", options, model.spec, 2000), model.spec.classes)
    clips = len(data.labels)
    with Steps("accuracy", clips, unit="clips", brief=True) as steps:
        probabilities = training.evaluate(
            model, data, batch=options.batch, progress=steps.update
        )
    found = evaluation.accuracy(
        probabilities, data.labels, model.spec.classes, motions.REVERSED
    )
    if attack:
        with Steps("attack", clips, unit="clips", brief=True) as steps:
            right = training.evaluate_attacked(
                model, data, attack, options.attack_clips, options.batch, steps.update
            )
        found["attack"] = dataclasses.asdict(attack) | {
            "clips": len(right),
            "top1": float(right.mean()),
        }
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, value in sorted(found["classes"].items(), key=lambda item: item[1]):
        table.add_row(name, f"{value:.1%}")
    for name, value in found["reversed_pairs"].items():
        table.add_row(f"{name}: which of the two", f"{value['choice']:.1%}")
    table.add_row(f"all {found['clips']} clips", f"{found['top1']:.1%}", style="bold")
    if attack:
        table.add_row(
            f"{found['attack']['clips']} clips under attack, radius {attack.radius:g}",
            f"{found['attack']['top1']:.1%}",
            style="bold",
        )
    Console().print(table)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.out.exists() and not options.overwrite:
        raise UserError(f"out={str(options.out)!r}: exists; use --overwrite")
    reason = checkpoints.unwritable(options.out)
    if options.out.is_dir():
        reason = "is a folder"
    if reason:
        raise UserError(f"out={str(options.out)!r}: {reason}; choose another file")
    shown = options.out.with_suffix(".html")
    reason = "is for JSON; end it in .json" if shown == options.out else None
    if shown.is_dir():
        reason = f"{shown.name} beside it is a folder; choose another file"
    elif shown.exists() and not options.overwrite:
        reason = f"{shown.name} beside it exists; use --overwrite"
    if reason:
        raise UserError(f"out={str(options.out)!r}: {reason}")
    finished = {str(folder): runs.results(folder) for folder in options.runs}
    load = functools.partial(loading.load_model, dtype=options.dtype, argument="judges")
    judges = {name: load(name) for name in options.judges}
    questions = comparison.questions(finished, judges)
    with Steps("judge", questions, unit="questions") as steps:
        found = comparison.compare(
            finished, judges, _PARTNERS, lambda done: steps.update(done, {})
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(options.out, found)
    shown.write_text(page.page(found, finished))
    console = Console(width=None if sys.stdout.isatty() else 1000)
    for rows in tables.of(found):
        console.print(tables.drawn(rows))
        console.print(Text(rows.note and f"{rows.note}\n", style="dim"), width=80)
    for line in (*tables.notes(found), f"numbers: {options.out}"):
        print(line)
    print(f"what they mean, and plots: {shown}")
    return 0


#: What the synthetic actions know of their motions.
_PARTNERS = {"reversed": motions.REVERSED, "mirrored": motions.MIRRORED}


def _bench(options: argparse.Namespace) -> int:
    for name in ("batch", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"{name}={getattr(options, name)}: must be at least 1")
    _check_parametrization(options)
    model = _to_bench("model", options, options.frames, options.size)
    verifier = None
    if options.verifier is not None:
        verifier = _to_bench("verifier", options, None, options.verifier_size)
    with Steps("bench", 6, unit="calls", brief=True) as steps:
        report = bench.measure(
            model,
            verifier,
            batch=options.batch,
            steps=options.steps,
            calls=5,
            parametrization=options.parametrization,
            progress=steps.update,
        )
    if options.json:
        print(json.dumps(report))
        return 0
    table = Table(box=None, show_header=False)
    for name, value in report.items():
        table.add_row(name, str(value))
    Console().print(table)
    return 0


def _to_bench(
    argument: str, options: argparse.Namespace, frames: int | None, size: int | None
) -> Model:
    reference = getattr(options, argument)
    settings: dict[str, Any] = {"dtype": options.dtype, "remat": options.remat}
    if "@" not in reference:
        classes = zoo.KINETICS_400
        return loading.initialize(
            reference, classes, frames=frames, size=size, **settings
        )
    if frames is not None or size is not None:
        raise UserError(
            f"{argument}={reference!r}: weights have frames and a size of their own;"
            " leave these out, or the weights"
        )
    return loading.load_model(reference, argument=argument, **settings)


# Small enough for two cores: the demo takes under two minutes there.
_DEMO = """--model vivit_small@robust
 --judge slow_r50_tiny@actions timesformer_small@actions --preview-every 0"""


def _demo(options: argparse.Namespace) -> int:
    """Runs the `synthesize` that it prints."""
    if options.label not in motions.CLASSES:
        hint = nearest(options.label, motions.CLASSES)
        raise UserError(f"label={options.label!r}: no synthetic action; {hint}")
    words = ["synthesize", *_DEMO.split(), "--steps", options.steps]
    words += ["--seed", options.seed, "--out", options.out]
    words += ["--stimulus", f"actions:{options.label}/{options.seed}"]
    if options.overwrite:
        words.append("--overwrite")
    _say(shlex.join(["leaps-jax", *words]))
    return _synthesize(arguments.parser().parse_args(words))


def _actions(options: argparse.Namespace) -> int:
    if options.out is None and not options.tfds:
        raise UserError("out: missing; name a folder, or write a data set with --tfds")
    settings = gallery.Settings(
        options.frames, options.size, options.stride, options.seed
    )
    clips, to_train = (_given(options.clips, n) for n in (0, dataset.CLIPS))
    place: dict[str, Any] = {"data_dir": options.data_dir}
    place["overwrite"] = options.overwrite
    if options.out is not None:
        gallery.check(options.out, clips, options.overwrite)
    if options.tfds:
        dataset.check(settings, to_train, **place)
    if options.out is not None:
        with Steps("render", gallery.total(clips)) as steps:
            lacking = gallery.write_folder(
                options.out,
                settings,
                clips,
                overwrite=options.overwrite,
                progress=lambda done: steps.update(done, {}),
            )
        if lacking:
            _say(f"no sheet.mp4: {lacking}")
        if clips:
            print(f"wrote {options.out / 'clips'}; use it as --data or --stimulus")
        print(f"results: {options.out / 'sheet.png'}")
    if options.tfds:
        with Steps("render", dataset.total(to_train)) as steps:
            name = dataset.write(
                settings,
                to_train,
                **place,
                progress=lambda done: steps.update(done, {}),
            )
        there = f" --data-dir {options.data_dir}" if options.data_dir else ""
        print(f"wrote tfds:{name}; use it as --data tfds:{name}/train{there}")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_COMMANDS = {
    "models": _models,
    "convert": _convert,
    "synthesize": _synthesize,
    "train": _train,
    "accuracy": _accuracy,
    "evaluate": _evaluate,
    "bench": _bench,
    "demo": _demo,
    "actions": _actions,
}
