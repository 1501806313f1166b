"""`leaps-jax synthesize`: inverts a model."""

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import microscopes, objectives, synthesis, taps, update
from leaps_jax.cli import arguments, inputs, jobs, memory
from leaps_jax.config import Config, preset
from leaps_jax.data.clips import Found, find_labelled, load_labelled
from leaps_jax.errors import UserError, listed
from leaps_jax.model import Model
from leaps_jax.progress import Steps
from leaps_jax.runs import folder as runs
from leaps_jax.runtime import multihost
from leaps_jax.runtime.engine import Engine, NotFiniteError
from leaps_jax.zoo import load as loading
from leaps_jax.zoo import references


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "synthesize",
        run,
        "Make videos that a model sees as the classes asked for, from noise and with"
        " clips as a guide. The same command resumes a run.",
        "leaps-jax synthesize --model x3d_xs@w --stimulus a.mp4 --label jack"
        " --out run\n"
        "  leaps-jax synthesize --jobs jobs.csv --out videos/ --batch 32",
    )
    option = sub.add_argument
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        metavar="NAME@WEIGHTS",
        help="the network to look into: a name that `leaps-jax models` lists, and after"
        " the @ weights that come with it (slow_r50_tiny@robust), a checkpoint folder,"
        " a published file, hf:OWNER/REPO or https://HOST/FILE",
    )
    what.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="a CSV table with the columns model, verifier, stimulus, label, copies,"
        " seed; verifier, copies (1) and seed (the number of the row, from 0) may be"
        " empty. Other settings hold for every row; the same command goes on with the"
        " rows that are not done",
    )
    option(
        "--verifier",
        metavar="NAME@WEIGHTS",
        help="another model of the same domain, whose feature statistics the videos"
        " should have; best one trained against attacks, such as"
        " slow_r50_tiny@robust",
    )
    option(
        "--judge",
        nargs="+",
        default=[],
        action="extend",
        metavar="NAME@WEIGHTS",
        help="models that took no part, to say what they see in the result",
    )
    option(
        "--stimulus",
        nargs="+",
        default=[],
        action="extend",
        metavar="PATH",
        help="clips that guide the videos: video files, folders of frames,"
        " <class>/<clip> trees, tfds:NAME/split, or actions:CLASS for a rendered one",
    )
    option(
        "--label",
        nargs="+",
        default=[],
        action="extend",
        metavar="NAME_OR_INDEX",
        help="classes that the videos should show; by default those after which the"
        " folders of the stimuli are named",
    )
    option(
        "--out",
        required=True,
        type=arguments.folder_or_address,
        metavar="DIR",
        help="folder of the run; with --jobs also an address, such as s3://BUCKET/NAME",
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument(
        "--method",
        default="leaps",
        metavar="METHOD",
        help=" | ".join(objectives.METHODS) + "; leaps by default",
    )
    how.add_argument(
        "--objective",
        metavar="PART",
        help="show what a part of the model responds to, in place of a method and a"
        " label: channel:TAP:INDEX, neuron:TAP:INDEX[:T,H,W] or layer:TAP. TAP is a"
        " name or a number that `leaps-jax models NAME` lists, INDEX a channel from 0,"
        " and T,H,W a position (the middle by default)",
    )
    arguments.add_parametrization(sub)
    option(
        "--copies",
        type=int,
        default=1,
        metavar="N",
        help="videos for each pair of a stimulus and a label; 1 by default",
    )
    jobs.add(sub)
    steps = f"{Config.steps} by default, {preset('deep_dream').steps} with deep_dream"
    for flag, told in (
        ("--steps", f"optimisation steps; {steps}"),
        ("--seed", f"of every random draw; {Config.seed} by default"),
        ("--frames", "frames of a video; the model's own by default"),
        ("--size", "height and width in pixels; the model's own by default"),
        ("--stride", "take every Nth frame of a clip; the model's own by default"),
    ):
        option(flag, type=int, metavar="N", help=told)
    option(
        "--short",
        default="refuse",
        metavar="refuse|loop",
        help="what to do with a clip that has too few frames; refuse by default",
    )
    option(
        "--dtype",
        metavar="float32|bfloat16",
        help="compute type; bfloat16 on accelerators, float32 on CPU by default",
    )
    option(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="any other setting, which the documentation of lj.Config explains: "
        + ", ".join(
            f.name for f in dataclasses.fields(Config) if f.name != "parametrization"
        ),
    )
    option(
        "--remat",
        action="store_true",
        help="recompute blocks in the backward pass: slower, with less memory (not on"
        " CPUs, where XLA undoes it)",
    )
    arguments.add_data_dir(sub)
    arguments.add_tensorboard(sub)
    arguments.add_save_every(sub)
    option(
        "--preview-every",
        type=int,
        default=100,
        metavar="STEPS",
        help="how often index.html and preview.mp4 show how far it is, 0 for never;"
        " 100 by default",
    )
    option(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="run over several processes, all started with this command: an address of"
        " the first at which all reach it; auto on TPU pods, Slurm and Open MPI. DIR"
        " must be on a disk that they share",
    )
    option("--processes", type=int, metavar="N", help="how many processes there are")
    option("--process", type=int, metavar="I", help="which one this is, from 0")
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Makes the videos of a run or, with --jobs, those of a table."""
    if options.jobs:
        words = ["synthesize", "--jobs", str(options.jobs), "--out", str(options.out)]
        return jobs.run(options, arguments.parser(add).parse_args(words))
    if isinstance(options.out, str):
        raise UserError(f"out={options.out!r}: is for --jobs; give a folder")
    for name in ("batch", "shard", "engine", "devices_per_worker", "workers"):
        if getattr(options, name) is not None:
            given = f"{name.replace('_', '-')}={getattr(options, name)}"
            raise UserError(f"{given}: is for --jobs; leave it out")
    config = inputs.config(options)
    multihost.join(options.coordinator, options.processes, options.process)
    told = functools.partial(memory.too_large, options)
    with multihost.leaving(NotFiniteError, told=told):
        return _run_here(options, config)


def _run_here(options: argparse.Namespace, config: Config) -> int:
    """The part of this process; there may be others."""
    with multihost.together():
        problem, settings, judges, notes, engine = _problem(options, config)
        where: dict[str, Any] = {"tensorboard": options.tensorboard}
        where["overwrite"] = options.overwrite
        before = runs.check(options.out, problem, settings, **where)
    was_finished = before is not None and before["status"] == "finished"
    for note in notes if multihost.first() and not was_finished else ():
        print(note, file=sys.stderr)
    record = runs.execute(
        options.out,
        problem,
        settings,
        judges,
        save_every=options.save_every,
        preview_every=options.preview_every,
        engine=engine,
        **where,
    )
    stopped = record["status"] == "stopped"
    if not multihost.first():
        return 130 if stopped else 0
    if stopped:
        step = record["step"]
        line = f"stopped at step {step}; the same command resumes {options.out}"
        print(line, file=sys.stderr)
        return 130
    if was_finished:
        print(f"{options.out} is finished; --overwrite starts it again")
    for role, verdict in record["judges"].items():
        what = f"{verdict['correct']} of {verdict['of']} as their class"
        if verdict["correct"] is None:
            videos = "video" if len(verdict["seen"]) == 1 else "videos"
            what = listed(f"{videos} as", verdict["seen"], most=3)
        print(f"{role} ({verdict['model']}) sees {what}")
    if "videos_not_written" in record:
        print(f"no mp4 files: {record['videos_not_written']}", file=sys.stderr)
    print(f"results: {options.out / 'index.html'}")
    return 0


def _problem(
    options: argparse.Namespace, config: Config
) -> tuple[synthesis.Problem, dict[str, Any], dict[str, Model], list[str], Engine]:
    """The problem, its settings, the judges, notes for the user, and the engine.

    The engine of a new run compiles while clips are read and judges are loaded.
    """
    if options.objective:
        if options.label:
            words = shlex.join(["--label", *options.label])
            raise UserError(f"{words}: not together with --objective; leave it out")
        objective = objectives.microscope(options.objective, config)
    else:
        objective = objectives.METHODS[options.method](config)
    needs_stimulus = objective.primed or config.init == "stimulus"
    if needs_stimulus and not options.stimulus:
        how = "--objective" if options.objective else f"--method {options.method}"
        raise UserError(
            f"stimulus: missing, and {how} starts from or is primed by one; give a"
            " clip, or --method activation_maximization"
        )
    notes: list[str] = []
    model = _load("model", options.model, options)
    verifier = None
    if options.verifier:
        verifier = _load("verifier", options.verifier, options)
    clip = {name: getattr(options, name) for name in ("frames", "size", "stride")}
    given = {name: value for name, value in clip.items() if value is not None}
    spec = dataclasses.replace(model.spec, **given)
    model = dataclasses.replace(model, spec=spec)
    synthesis.check_input(model)
    if options.objective:
        looking = microscopes.named(options.objective, model)
        objective = objectives.microscope(looking, config)
    if "verifier" in objective.uses and verifier is None:
        objective = objective.without_verifier()
        notes.append("no --verifier: the diversity term is off")
    if verifier is not None and "verifier" in objective.uses:
        verifier = _with_moments(verifier, options, notes)
    for label in options.label:  # a name that is none is told before the work
        spec.label_index(label)
    found = _found(options, model)
    used = verifier if objective.verified else None
    setup = update.make_setup(model, used, objective, config)
    engine = Engine(setup, executables=inputs.executables())
    pool = ThreadPoolExecutor(1, "clips")
    try:
        reading = pool.submit(_stimuli_and_labels, options, found)
        wait([reading], timeout=0.5)
        if reading.done():
            reading.result()  # a broken clip is told before the work
        # else there may be nothing to do; Path.exists raises where a name is too long
        if not os.path.exists(options.out):
            pairs = max(len(options.label), found.count if found else 1)
            engine.begin_compile(pairs * options.copies)
        judges = {name: _load("judge", name, options) for name in options.judge}
        clips, labels = reading.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    problem = synthesis.prepare(model, clips, labels, verifier, config, objective)
    problem = problem.repeated(options.copies)
    judges = {"self": model} | ({"verifier": verifier} if verifier else {}) | judges
    names = ("model", "verifier", "method", "stimulus", "copies", "short", "dtype")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.objective:
        settings |= {"method": None, "objective": looking}
    settings |= {
        "labels": problem.labels.tolist(),
        "frames": spec.frames,
        "size": spec.size,
        "stride": spec.stride,
        "config": dataclasses.asdict(config),
    }
    named = [options.model, *filter(None, [options.verifier]), *options.judge]
    settings["pinned"] = {
        name: address for name in named if (address := references.pinned(name))
    }
    return problem, settings, judges, notes, engine


def _load(argument: str, reference: str, options: argparse.Namespace) -> Model:
    return loading.load_model(
        reference, dtype=options.dtype, remat=options.remat, argument=argument
    )


def _found(options: argparse.Namespace, model: Model) -> Found | None:
    """The clips that --stimulus names, not yet read."""
    if options.stimulus:
        how = {"short": options.short, "data_dir": options.data_dir}
        return find_labelled(options.stimulus, model.spec, **how)
    if not options.objective and not options.label:
        raise UserError("label: missing; name the classes to synthesise")
    return None


def _stimuli_and_labels(
    options: argparse.Namespace, found: Found | None
) -> tuple[np.ndarray | None, list[int | str] | None]:
    """The clips, and the classes; None for an objective that looks at none."""
    if found is None:
        return None, None if options.objective else options.label
    first = multihost.first()
    with Steps("read", shown=first, unit="clips", waiting="", brief=True) as steps:
        clips, folders = found.load(lambda done, total: steps.update(done, total=total))
    if options.objective:
        return clips, None
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
    clips, _ = load_labelled(
        options.stimulus, verifier.spec, short="loop", data_dir=options.data_dir
    )
    notes.append(
        f"verifier {verifier.spec.name} has no stored statistics: estimated from"
        f" {len(clips)} stimuli; `convert --moments DIR` stores better ones"
    )
    return dataclasses.replace(verifier, moments=inputs.moments(verifier, clips))
