"""`leaps-jax train`: trains a model on labelled clips."""

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax

from leaps_jax import attacks, files, schemas, synthesis, training
from leaps_jax.actions import scenes
from leaps_jax.cli import arguments, inputs
from leaps_jax.data import datasets
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.progress import Steps, interruptible
from leaps_jax.runs import events, ownership
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints, references, states
from leaps_jax.zoo import load as loading


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "train",
        run,
        "Train a model on clips of a <class>/<clip> tree, a TFDS data set, or on"
        " synthetic actions. The same command resumes a training.",
        "leaps-jax train --model x3d_xs_small --data clips/ --out weights/",
    )
    option = sub.add_argument
    recipe = training.Recipe()
    start = sub.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--model", metavar="NAME", help="a name of `leaps-jax models`, from scratch"
    )
    start.add_argument(
        "--from",
        dest="start",
        metavar="NAME@WEIGHTS",
        help="weights to start from; classes of its own get a new classifier",
    )
    arguments.add_data(sub, "--data", "labelled clips", required=True)
    arguments.add_data(sub, "--eval-data", "held-out labelled clips")
    option("--out", required=True, type=Path, metavar="CHECKPOINT", help="folder")
    option("--steps", type=int, default=recipe.steps, metavar="N")
    option("--batch", type=int, default=recipe.batch, metavar="N")
    option("--frames", type=int, metavar="N", help="frames of a clip")
    option("--size", type=int, metavar="N", help="height and width in pixels")
    option("--stride", type=int, metavar="N", help="source frames between two frames")
    option("--seed", type=int, default=recipe.seed, metavar="N")
    option("--evaluations", type=int, default=recipe.evaluations, metavar="N")
    option("--learning-rate", type=float, default=recipe.learning_rate, metavar="X")
    option("--weight-decay", type=float, default=recipe.weight_decay, metavar="X")
    option(
        "--flip",
        action="store_true",
        help="mirror half of the clips; only if no class changes by it",
    )
    option(
        "--hints",
        type=float,
        default=recipe.hints,
        metavar="X",
        help="weight of a loss that tells tokens where the joints of a rendered figure"
        " are; 1 for the shipped transformers",
    )
    option(
        "--robust",
        type=float,
        metavar="RADIUS",
        help="train against attacks: each clip is first changed within an L2 ball of"
        " this radius, in units of pixels in [0, 1] over a whole clip, so as to mislead"
        " the model; what is synthesised from such weights is far easier to recognise."
        " 3 for the shipped ones (16 frames of 80 to 112 pixels)",
    )
    arguments.add_attack(sub, attacks.Attack(1.0))
    option(
        "--attack-warmup",
        type=float,
        metavar="X",
        help="share of the run in which the radius grows, from a fifth;"
        f" {recipe.attack_warmup} by default",
    )
    arguments.add_dtype(sub)
    arguments.add_tensorboard(sub)
    arguments.add_save_every(sub)
    arguments.add_data_dir(sub)
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint, or goes on with the training that the folder holds."""
    name = options.model or options.start.partition("@")[0]
    zoo.entry(name)
    out, overwrite = options.out, options.overwrite
    checkpoints.check_vacant(out, overwrite or _record(out) is not None)
    recipe = _recipe(options)
    # All that can be refused is refused before the clips are read.
    classes = inputs.class_names("data", options)
    if options.eval_data:
        inputs.check_classes("eval_data", options, classes)
    model = _model(name, options, classes)
    synthesis.check_input(model)
    # as many renderings as moments are estimated of
    data = inputs.labelled_clips("data", options, model.spec, 256)
    held_out = None
    if options.eval_data:
        held_out = inputs.held_out_clips("eval_data", options, model.spec)
    if isinstance(data, datasets.Clips):
        said = f"{len(data.videos)} clips of {len(data.classes)} classes"
        print(said, file=sys.stderr)
    training.check(data, recipe)
    work = _Training(name, model, data, held_out, recipe)
    identity = _identity(work, options)
    with ownership.alone(out):
        if options.tensorboard:
            events.check(options.tensorboard, identity, overwrite)
        record = None if overwrite else _record(out)
        if record is None or not record["steps"]:  # nothing is lost with it
            shutil.rmtree(out / _BEGUN, ignore_errors=True)
            return _execute(work, options, _new_record(work, options, identity))
        ownership.check_same(out, record["identity"], identity)
        if record["status"] != "finished":
            return _execute(work, options, record | {"status": "running"})
        print(f"{out} is finished; --overwrite starts it again")
        return 0


@dataclasses.dataclass(frozen=True)
class _Training:
    """A training: a model by its name in the zoo, its data, and the recipe."""

    name: str
    model: Model
    data: datasets.Dataset
    held_out: datasets.Dataset | None
    recipe: training.Recipe


#: Within the folder of a checkpoint: a training that is not finished, with its record
#: and its last states. Hidden, since nobody needs it who uses the checkpoint.
_BEGUN = ".training"


def _record(out: Path) -> dict[str, Any] | None:
    """The record of the training in a folder; None where it has none.

    Raises:
      UserError: the record is damaged.
    """
    schema, remedy = schemas.TrainRecord, "choose another folder, or --overwrite"
    try:
        try:
            found = schemas.read(out / _BEGUN / "record.json", schema, remedy)
        except (FileNotFoundError, NotADirectoryError):  # finished, or not begun
            extra = checkpoints.extra(out)
            if "identity" not in extra:
                return None
            found = schemas.checked(out / "model.json", extra, schema, remedy)
    except UserError as error:
        raise UserError(f"out={str(out)!r}: {error}") from None
    return found.model_dump()


def _identity(work: _Training, options: argparse.Namespace) -> dict[str, Any]:
    """All that determines the weights, flat; data and weights by their contents."""
    spec = dataclasses.asdict(work.model.spec)
    decides = {key: spec[key] for key in ("frames", "size", "stride", "classes")}
    decides |= {"model": work.name, "dtype": options.dtype}
    decides["weights at the start"] = checkpoints.digest(work.model.variables)
    for name, data in (("data", work.data), ("eval_data", work.held_out)):
        decides[name] = getattr(options, name)
        if isinstance(data, datasets.Clips):
            decides[name] = checkpoints.digest([data.labels, *data.videos])
    return ownership.plain(dataclasses.asdict(work.recipe) | decides)


def _new_record(
    work: _Training, options: argparse.Namespace, identity: dict[str, Any]
) -> dict[str, Any]:
    pinned = references.pinned(options.start) if options.start else None
    return {
        "status": "running",
        "steps": 0,
        "seconds": 0.0,
        "command": shlex.join(["leaps-jax", *options.words]),
        "recipe": dataclasses.asdict(work.recipe),
        "identity": identity,
        "versions": ownership.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "data": options.data,
        "eval_data": options.eval_data,
    } | ({"from": pinned} if pinned else {})


def _execute(
    work: _Training, options: argparse.Namespace, record: dict[str, Any]
) -> int:
    """Trains from the last state on; saves states, and the checkpoint at the end."""
    out, recipe = options.out, work.recipe
    start = jax.device_get(training.init_state(work.model, work.data, recipe))
    state = states.restore(out / _BEGUN / "states", start)
    if state is None:
        state = start
        _save_state(out, record, state)  # before the work: is there room, and leave?
    done, seconds = int(state.step), record["seconds"]
    began = saved = time.monotonic()
    report = None
    logged: Any = contextlib.nullcontext()
    if options.tensorboard:
        of_run = (options.tensorboard, record["identity"])
        logged = events.Events(*of_run, done, options.overwrite)
    with (
        Steps("train", recipe.steps, done) as steps,
        interruptible() as stop,
        logged as log,
    ):
        if done:
            steps.say(f"resuming {out} at step {done}")
        evaluating = _Evaluating(steps, work.held_out)
        reports = training.train(
            work.model,
            work.data,
            work.held_out,
            recipe,
            progress=evaluating.update,
            state=state,
        )
        try:
            for report in reports:
                _show(steps, report, log)
                stop.begin_call()
                now = time.monotonic()
                record["seconds"] = round(seconds + now - began, 1)
                if report.step == recipe.steps:
                    break
                if stop or now - saved > options.save_every:
                    _save_state(out, record, jax.device_get(report.state))
                    saved = time.monotonic()
                if stop:
                    break
        except UserError as error:  # the loss is not finite
            if report is None:
                raise
            _save_model(work, out, record | {"status": "failed"}, report)
            held = f"{out} holds the weights of step {report.step}"
            raise UserError(f"{error}; {held}") from None
    assert report is not None
    finished = report.step == recipe.steps
    status = "finished" if finished else "stopped"
    _save_model(work, out, record | {"status": status}, report)
    print(f"wrote {out}; use it as --model {work.name}@{out}")
    if finished:
        shutil.rmtree(out / _BEGUN, ignore_errors=True)
        return 0
    stopped = f"stopped at step {report.step} of {recipe.steps}"
    print(f"{stopped}; the same command resumes {out}", file=sys.stderr)
    return 130


def _show(
    steps: Steps, report: training.Report, log: events.Events | None = None
) -> None:
    numbers = {"loss": report.loss, "train accuracy": report.train_accuracy}
    steps.update(report.step, numbers)
    if report.accuracy is not None:
        steps.say(f"step {report.step}: accuracy {report.accuracy:.1%}")
        numbers["accuracy"] = report.accuracy
    if report.robust_accuracy is not None:
        steps.say(f"under attack {report.robust_accuracy:.1%}")
        numbers["accuracy under attack"] = report.robust_accuracy
    if log:
        log.add_numbers(report.step, numbers)


def _save_state(out: Path, record: dict[str, Any], state: training.TrainState) -> None:
    record["steps"] = int(state.step)
    states.save(out / _BEGUN / "states", record["steps"], state)
    files.write_json(out / _BEGUN / "record.json", record)


def _save_model(
    work: _Training, out: Path, record: dict[str, Any], report: training.Report
) -> None:
    with Steps("moments", unit="clips", brief=True) as steps:
        trained = training.with_moments(report.model, work.data, progress=steps.update)
    record |= {
        "steps": report.step,
        "accuracy": report.accuracy,
        "robust_accuracy": report.robust_accuracy,
    }
    loading.save(trained, out, overwrite=True, extra=record)


def _recipe(options: argparse.Namespace) -> training.Recipe:
    """How to train; refuses what does not go with the data."""
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
    return recipe


def _robust(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a recipe that --robust sets."""
    given = {"attack_warmup": options.attack_warmup}
    if attack := inputs.attack("robust", attacks.Attack, options):
        given["attack"] = attack
    elif options.attack_warmup is not None:
        raise UserError("attack-warmup: is for --robust; leave it out")
    return {name: value for name, value in given.items() if value is not None}


def _model(name: str, options: argparse.Namespace, classes: tuple[str, ...]) -> Model:
    """The model that training starts from."""
    clip = {"frames": options.frames, "size": options.size, "stride": options.stride}
    if not options.start:
        return loading.initialize(
            name, classes, **clip, dtype=options.dtype, seed=options.seed
        )
    started = loading.load_model(options.start, dtype=options.dtype, argument="from")
    return loading.for_classes(started, classes, **clip, seed=options.seed)


class _Evaluating:
    """A progress line for each evaluation during training, removed at its end."""

    def __init__(self, steps: Steps, data: datasets.Dataset | None):
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
