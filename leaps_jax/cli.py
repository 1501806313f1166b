"""The command `leaps-jax`: reads arguments, calls the library, prints what came of it.

Exit codes: 0 for success, 2 for a mistake of the user's (one line that names the
argument, its value and the remedy), 1 when a run failed, 130 after Ctrl-C.
"""

import argparse
import dataclasses
import functools
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from leaps_jax import (
    checkpoints,
    evaluation,
    loading,
    objectives,
    runs,
    stimuli,
    synthesis,
    taps,
    training,
    zoo,
)
from leaps_jax.actions import dataset, gallery, motions, scenes
from leaps_jax.config import PRESETS, Config, ModelSpec
from leaps_jax.errors import UserError, nearest
from leaps_jax.progress import Steps, interruptible
from leaps_jax.taps import Model


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        options = _parser().parse_args(arguments)
        options.arguments = sys.argv[1:] if arguments is None else arguments
        _use_compilation_cache()
        return options.run(options)
    except UserError as error:
        print(f"leaps-jax: error: {error}", file=sys.stderr)
        return 2
    except synthesis.NotFiniteError as error:
        print(f"leaps-jax: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("leaps-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _use_compilation_cache() -> None:
    """Keeps compiled steps on disk, so that the second start of a job is quick."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "leaps_jax"))


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="leaps-jax", description="See what a video model has learnt.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str, run) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("models", "List the zoo.", "leaps-jax models --json", _models)
    sub.add_argument("--json", action="store_true", help="print JSON, not a table")

    sub = command(
        "convert",
        "Convert published weights to a checkpoint of this project.",
        "leaps-jax convert slow_r50 SLOW_8x8_R50.pyth slow_r50/",
        _convert,
    )
    sub.add_argument("name", metavar="NAME", help="a name of `leaps-jax models`")
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help=".pth .pyth .pt .bin .pkl .safetensors, a checkpoint of Flax, or a Hugging"
        " Face folder",
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="folder of the checkpoint")
    sub.add_argument(
        "--moments",
        metavar="DIR",
        help="clips to estimate tap statistics from, so that a model without batch"
        " norm can be a verifier",
    )
    _add_overwrite(sub)

    sub = command(
        "synthesize",
        "Invert a model: videos that it sees as the labels, primed by stimuli. The"
        " same command resumes a run.",
        "leaps-jax synthesize --model x3d_xs@weights --stimulus clip.mp4"
        " --label jack --out run/",
        _synthesize,
    )
    _add_synthesize(sub)

    sub = command(
        "train",
        "Train a model on clips of a <class>/<clip> tree, a TFDS data set, or on"
        " synthetic actions.",
        "leaps-jax train --model x3d_xs_small --data clips/ --out weights/",
        _train,
    )
    _add_train(sub)

    sub = command(
        "accuracy",
        "Measure how often a model is right on labelled clips.",
        "leaps-jax accuracy --model x3d_xs@actions --data synthetic_actions",
        _accuracy,
    )
    _add_accuracy(sub)

    sub = command(
        "evaluate",
        "Ask judges about finished runs: what they see, and whether a video that runs"
        " backwards, or is mirrored, becomes the opposite class.",
        "leaps-jax evaluate run/ --judges x3d_xs@actions --out report.json",
        _evaluate,
    )
    _add_evaluate(sub)

    sub = command(
        "demo",
        "Invert a model that comes with the project: nothing to download.",
        'leaps-jax demo --label "jumping jack" --out demo/',
        _demo,
    )
    _add_demo(sub)

    sub = command(
        "actions",
        "See the synthetic actions: a contact sheet, clips, and a data set for TFDS.",
        "leaps-jax actions --out actions/ --clips 4",
        _actions,
    )
    _add_actions(sub)
    return parser


def _add_overwrite(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--overwrite", action="store_true", help="replace what the output holds"
    )


def _add_synthesize(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME@WEIGHTS",
        help="a zoo name and a checkpoint folder or published file",
    )
    add("--verifier", metavar="NAME@WEIGHTS", help="another model of the same domain")
    add(
        "--judge",
        nargs="+",
        default=[],
        metavar="NAME@WEIGHTS",
        help="other models that classify the result",
    )
    add(
        "--stimulus",
        nargs="+",
        default=[],
        metavar="PATH",
        help="video files, folders of frames, <class>/<clip> trees, tfds:NAME/split or"
        " actions:CLASS",
    )
    add(
        "--label",
        nargs="+",
        default=[],
        metavar="NAME_OR_INDEX",
        help="target classes; left out, the class folders of the stimuli",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    add(
        "--method",
        default="leaps",
        metavar="METHOD",
        help=" | ".join(objectives.METHODS),
    )
    add("--copies", type=int, default=1, metavar="N", help="videos per pair")
    add("--steps", type=int, metavar="N", help="optimisation steps")
    add("--seed", type=int, metavar="N", help="of every random draw")
    add("--frames", type=int, metavar="N", help="frames, if not the model's own")
    add("--size", type=int, metavar="N", help="pixels, if not the model's own")
    add("--stride", type=int, metavar="N", help="source frames between two frames")
    add(
        "--short",
        default="refuse",
        metavar="refuse|loop",
        help="what to do with a clip that has too few frames",
    )
    add(
        "--dtype",
        metavar="float32|bfloat16",
        help="compute type; bfloat16 on accelerators, float32 on CPU by default",
    )
    add(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="any setting of Config: "
        + ", ".join(f.name for f in dataclasses.fields(Config)),
    )
    add(
        "--remat",
        action="store_true",
        help="recompute blocks in the backward pass: slower, with less memory",
    )
    add("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    add(
        "--save-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how often the state is saved for resuming",
    )
    add(
        "--preview-every",
        type=int,
        default=100,
        metavar="STEPS",
        help="how often preview.mp4 is written, 0 for never",
    )
    _add_overwrite(sub)


_RENDERED = {"synthetic_actions": scenes.clip, "synthetic_stills": scenes.still}


def _add_data(
    sub: argparse.ArgumentParser, flag: str, what: str, required: bool = False
) -> None:
    sub.add_argument(
        flag,
        required=required,
        metavar="DIR|tfds:NAME/split|NAME",
        help=f"{what}: a <class>/<clip> tree, a TFDS data set, or one that is rendered"
        f" while it is used ({', '.join(_RENDERED)})",
    )


def _add_train(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
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
    _add_data(sub, "--data", "labelled clips", required=True)
    _add_data(sub, "--eval-data", "held-out labelled clips")
    add("--out", required=True, type=Path, metavar="CHECKPOINT", help="folder")
    add("--steps", type=int, default=recipe.steps, metavar="N")
    add("--batch", type=int, default=recipe.batch, metavar="N")
    add("--frames", type=int, metavar="N", help="frames of a clip")
    add("--size", type=int, metavar="N", help="height and width in pixels")
    add("--stride", type=int, metavar="N", help="source frames between two frames")
    add("--seed", type=int, default=recipe.seed, metavar="N")
    add("--evaluations", type=int, default=recipe.evaluations, metavar="N")
    add("--learning-rate", type=float, default=recipe.learning_rate, metavar="X")
    add("--weight-decay", type=float, default=recipe.weight_decay, metavar="X")
    add(
        "--flip",
        action="store_true",
        help="mirror half of the clips; only if no class changes by it",
    )
    add(
        "--hints",
        type=float,
        default=recipe.hints,
        metavar="X",
        help="weight of a loss that tells tokens where the joints of a rendered figure"
        " are; 1 for the shipped transformers",
    )
    add("--dtype", metavar="float32|bfloat16", help="compute type")
    add("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    _add_overwrite(sub)


def _add_accuracy(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, metavar="NAME@WEIGHTS")
    _add_data(sub, "--data", "labelled clips", required=True)
    sub.add_argument("--dtype", metavar="float32|bfloat16", help="compute type")
    sub.add_argument("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    sub.add_argument("--json", action="store_true", help="print JSON, not a table")


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders")
    sub.add_argument("--judges", nargs="+", required=True, metavar="NAME@WEIGHTS")
    sub.add_argument("--out", required=True, type=Path, metavar="REPORT", help=".json")
    sub.add_argument("--dtype", metavar="float32|bfloat16", help="compute type")
    _add_overwrite(sub)


# Small enough for two cores: the demo takes under two minutes there.
_DEMO = """--model x3d_xs@actions --verifier vivit_small@actions
 --judge slow_r50_tiny@actions --preview-every 0
 --set blur=2.5 temporal_blur=1 noise=0.1 spatial_tv=2 temporal_tv=2"""


def _add_demo(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--label", default="jumping jack", metavar="CLASS", help="a synthetic action")
    add("--out", default="demo", metavar="DIR", help="folder of the run")
    add("--steps", default="150", metavar="N", help="150 by default")
    add("--seed", default="1", metavar="N", help="of stimulus and noise")
    _add_overwrite(sub)


def _add_actions(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    default = gallery.Settings()
    add("--out", type=Path, metavar="DIR", help="folder of the contact sheet")
    add(
        "--clips",
        type=int,
        metavar="N",
        help="clips of each class: as DIR/clips/<class>/<clip>.mp4, none by default;"
        " with --tfds, to train on, 100 by default, and a fifth as many to test on",
    )
    add("--frames", type=int, default=default.frames, metavar="N", help="of a model")
    add("--size", type=int, default=default.size, metavar="N", help="pixels")
    add(
        "--stride",
        type=int,
        default=default.stride,
        metavar="N",
        help=f"of a model; clips have frames * stride frames, {stimuli.FPS} a second",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help="of every draw")
    add("--tfds", action="store_true", help="write the data set tfds:synthetic_actions")
    add("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    _add_overwrite(sub)


def _models(options: argparse.Namespace) -> int:
    rows = zoo.table()
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    columns = ["name", "paper", "input", "parameters", "gmacs", "taps", "namings"]
    for column in [*columns, "licence"]:
        table.add_column(column, overflow="fold")
    for row in rows:
        shown = row | {
            "input": f"{row['frames']}x{row['stride']} {row['size']} px",
            "parameters": f"{row['parameters'] / 1e6:.2f} M",
            "gmacs": f"{row['gmacs']:.3g}",
            "namings": ", ".join(row["namings"]) or "-",
        }
        table.add_row(*(str(shown[c]) for c in [*columns, "licence"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _convert(options: argparse.Namespace) -> int:
    zoo.entry(options.name)
    checkpoints.check_vacant(options.out, options.overwrite)
    try:
        model = loading.convert(options.name, options.source)
    except UserError as error:
        reason = str(error).removeprefix(f"{options.source}: ")
        raise UserError(f"source={options.source!r}: {reason}") from None
    if options.moments:
        clips, _ = stimuli.load_labelled(
            options.moments, model.spec, short="loop", argument="moments"
        )
        model = dataclasses.replace(model, moments=taps.estimate_moments(model, clips))
    loading.save(model, options.out, overwrite=options.overwrite)
    print(f"wrote {options.out}; use it as --model {options.name}@{options.out}")
    return 0


def _synthesize(options: argparse.Namespace) -> int:
    config = _config(options)
    objective = objectives.METHODS[options.method](config)
    needs_stimulus = "stimulus" in objective.uses or config.init == "stimulus"
    if needs_stimulus and not options.stimulus:
        raise UserError(
            f"stimulus: missing, and --method {options.method} starts from or is primed"
            " by one; give a clip, or --method activation_maximization"
        )
    notes = []
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
        objective = objective.without("diversity")
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
    before = runs.check(options.out, problem, settings, overwrite=options.overwrite)
    was_finished = before is not None and before["status"] == "finished"
    for note in notes if not was_finished else ():
        _say(note)
    record = runs.execute(
        options.out,
        problem,
        settings,
        judges,
        overwrite=options.overwrite,
        save_every=options.save_every,
        preview_every=options.preview_every,
    )
    if record["status"] == "stopped":
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


def _config(options: argparse.Namespace) -> Config:
    if options.method not in objectives.METHODS:
        hint = nearest(options.method, objectives.METHODS)
        raise UserError(f"method={options.method!r}: unknown; {hint}")
    if options.copies < 1:
        raise UserError(f"copies={options.copies}: must be at least 1")
    given = {"steps": options.steps, "seed": options.seed}
    changes = {name: value for name, value in given.items() if value is not None}
    return Config(**PRESETS[options.method] | changes).updated(options.set)


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
    clips, folders = stimuli.load_labelled(
        options.stimulus, model.spec, short=options.short, data_dir=options.data_dir
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
    return dataclasses.replace(verifier, moments=taps.estimate_moments(verifier, clips))


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
    )
    if options.flip and options.data in _RENDERED:
        raise UserError(
            f"flip: a mirror changes classes of {options.data}; leave it out"
        )
    if options.hints and options.data not in _RENDERED:
        raise UserError(
            f"hints={options.hints}: joints of {options.data} are not known; leave it"
            f" out, or train on {' or '.join(_RENDERED)}"
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
        for report in training.train(model, data, held_out, recipe):
            numbers = {"loss": report.loss, "train accuracy": report.train_accuracy}
            steps.update(report.step, numbers)
            if report.accuracy is not None:
                steps.say(f"step {report.step}: accuracy {report.accuracy:.1%}")
            if stop:
                break
    assert report is not None
    trained = training.with_moments(report.model, data)
    record: dict[str, Any] = {
        "command": shlex.join(["leaps-jax", *options.arguments]),
        "recipe": dataclasses.asdict(recipe),
        "versions": runs.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "seconds": round(time.monotonic() - began, 1),
        "data": options.data,
        "steps": report.step,
        "eval_data": options.eval_data,
        "accuracy": report.accuracy,
    }
    loading.save(trained, options.out, overwrite=options.overwrite, extra=record)
    print(f"wrote {options.out}; use it as --model {name}@{options.out}")
    if stop:
        _say(f"stopped at step {report.step} of {recipe.steps}")
        return 130
    return 0


def _data(
    argument: str, options: argparse.Namespace, spec: ModelSpec, count: int
) -> training.Clips | training.Renderings:
    source = getattr(options, argument)
    if source in _RENDERED:
        draw = functools.partial(
            _RENDERED[source],
            frames=spec.frames,
            size=spec.size,
            fps=stimuli.FPS / spec.stride,
        )
        return training.Renderings(draw, motions.CLASSES, len(motions.JOINTS), count)
    return training.Clips(
        *stimuli.read_tree(
            source,
            round(spec.size * 8 / 7),
            data_dir=options.data_dir,
            argument=argument.replace("_", "-"),
        )
    )


def _classes(argument: str, options: argparse.Namespace) -> tuple[str, ...]:
    source = getattr(options, argument)
    if source in _RENDERED:
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
    model = loading.load_model(options.model, dtype=options.dtype)
    _check_known("data", _classes("data", options), model.spec.classes, options)
    data = _same_classes(_data("data", options, model.spec, 2000), model.spec.classes)
    probabilities = training.evaluate(model, data)
    found = evaluation.accuracy(probabilities, data.labels, model.spec.classes)
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
    finished = {folder: runs.results(folder) for folder in options.runs}
    load = functools.partial(loading.load_model, dtype=options.dtype, argument="judges")
    judges = {name: load(name) for name in options.judges}
    report: dict[str, Any] = {"versions": runs.versions(), "runs": {}}
    columns = ("run", "judge", "stimuli", "videos", "reversed", "flip", "mirrored")
    table = Table(*columns, "flip", box=None, header_style="bold")
    for folder, run in finished.items():
        rows: dict[str, Any] = {}
        report["runs"][str(folder)] = rows
        for name, model in judges.items():
            row: dict[str, Any] = {}
            rows[name] = row
            for what in ("stimuli", "videos"):
                clips = run[what]
                if not len(clips):
                    continue
                truth = evaluation.truth(model, clips, run["classes"])
                row[what] = evaluation.judge(model, clips, run["classes"]) | {
                    "motion": evaluation.summary(truth),
                    "truth": truth,
                }
            table.add_row(str(folder), name, *_shares(row))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(options.out, report)
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    print(
        "stimuli, videos: seen as their class. reversed, mirrored: right of the two"
        f" classes that are each other's; flip: the other after it. Rows: {options.out}"
    )
    return 0


def _shares(row: dict[str, Any]) -> list[str]:
    cells = []
    for what in ("stimuli", "videos"):
        verdict = row.get(what)
        cells.append(f"{verdict['correct']}/{verdict['of']}" if verdict else "-")
    for change in evaluation.CHANGES:
        counts = row["videos"]["motion"].get(change)
        for key in ("right", "flips"):
            cells.append(f"{counts[key]}/{counts['of']}" if counts else "-")
    return cells


def _demo(options: argparse.Namespace) -> int:
    """Runs the `synthesize` that it prints."""
    if options.label not in motions.CLASSES:
        hint = nearest(options.label, motions.CLASSES)
        raise UserError(f"label={options.label!r}: no synthetic action; {hint}")
    arguments = ["synthesize", *_DEMO.split(), "--steps", options.steps]
    arguments += ["--seed", options.seed, "--out", options.out]
    arguments += ["--stimulus", f"actions:{options.label}/{options.seed}"]
    if options.overwrite:
        arguments.append("--overwrite")
    _say(shlex.join(["leaps-jax", *arguments]))
    return _synthesize(_parser().parse_args(arguments))


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
