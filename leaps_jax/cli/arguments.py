"""The arguments of the command `leaps-jax`."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NoReturn

from leaps_jax import attacks, objectives, parametrizations, training
from leaps_jax.actions import gallery, scenes
from leaps_jax.config import Config
from leaps_jax.data.clips import FPS

BATCH = 8  # videos of a table that are optimised at a time


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` is which one was given."""
    whole = _Parser(prog="leaps-jax", description="See what a video model has learnt.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return sub

    sub = command("models", "List the zoo.", "leaps-jax models --json")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, not a table")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of README"
    )

    sub = command(
        "convert",
        "Convert published weights to a checkpoint of this project.",
        "leaps-jax convert slow_r50 SLOW_8x8_R50.pyth slow_r50/",
    )
    sub.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a name of `leaps-jax models`; left out, recognised by names and shapes",
    )
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
        " --label jack --out run/\n"
        "  leaps-jax synthesize --jobs jobs.csv --out videos/ --batch 32",
    )
    _add_synthesize(sub)

    sub = command(
        "train",
        "Train a model on clips of a <class>/<clip> tree, a TFDS data set, or on"
        " synthetic actions.",
        "leaps-jax train --model x3d_xs_small --data clips/ --out weights/",
    )
    _add_train(sub)

    sub = command(
        "accuracy",
        "Measure how often a model is right on labelled clips.",
        "leaps-jax accuracy --model x3d_xs@actions --data synthetic_actions",
    )
    _add_accuracy(sub)

    sub = command(
        "evaluate",
        "Ask judges about finished runs: what they see, whether the order of frames"
        " matters to them, and how the videos move. Writes a table, JSON, and a page"
        " with plots. Judges that took part in a run do not count.",
        "leaps-jax evaluate run/ --judges x3d_xs@actions vivit_small@actions"
        " --out report.json",
    )
    _add_evaluate(sub)

    sub = command(
        "bench",
        "Time the update step, with random weights if none are given.",
        "leaps-jax bench --model slow_r50 --verifier x3d_xs --batch 8 --json",
    )
    _add_bench(sub)

    sub = command(
        "demo",
        "Invert a model that comes with the project: nothing to download.",
        'leaps-jax demo --label "jumping jack" --out demo/',
    )
    _add_demo(sub)

    sub = command(
        "actions",
        "See the synthetic actions: a contact sheet, clips, and a data set for TFDS.",
        "leaps-jax actions --out actions/ --clips 4",
    )
    _add_actions(sub)
    return whole


def _add_overwrite(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--overwrite", action="store_true", help="replace what the output holds"
    )


def _add_synthesize(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        metavar="NAME@WEIGHTS",
        help="a zoo name and a checkpoint folder or published file",
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
    add(
        "--verifier",
        metavar="NAME@WEIGHTS",
        help="another model of the same domain, whose feature statistics the videos"
        " should have; best one trained against attacks, such as"
        " slow_r50_tiny@robust",
    )
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
    _add_parametrization(sub)
    add("--copies", type=int, default=1, metavar="N", help="videos per pair")
    add(
        "--batch",
        type=int,
        metavar="N",
        help=f"with --jobs: videos on all devices at a time, {BATCH} by default",
    )
    add(
        "--shard",
        metavar="I/N",
        help="with --jobs: do rows I-1, I-1+N, I-1+2N and so on, I from 1 to N; by"
        " default those of --process among --processes, which need no --coordinator",
    )
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
        + ", ".join(
            f.name for f in dataclasses.fields(Config) if f.name != "parametrization"
        ),
    )
    add(
        "--remat",
        action="store_true",
        help="recompute blocks in the backward pass: slower, with less memory (not on"
        " CPUs, where XLA undoes it)",
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
    add(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="run over several processes, all started with this command: an address of"
        " the first at which all reach it; auto on TPU pods, Slurm and Open MPI. DIR"
        " must be on a disk that they share",
    )
    add("--processes", type=int, metavar="N", help="how many processes there are")
    add("--process", type=int, metavar="I", help="which one this is, from 0")
    _add_overwrite(sub)


def _add_data(
    sub: argparse.ArgumentParser, flag: str, what: str, required: bool = False
) -> None:
    sub.add_argument(
        flag,
        required=required,
        metavar="DIR|tfds:NAME/split|NAME",
        help=f"{what}: a <class>/<clip> tree, a TFDS data set, or one that is rendered"
        f" while it is used ({', '.join(scenes.RENDERED)})",
    )


def _add_parametrization(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--parametrization",
        default=Config.parametrization,
        metavar="NAME",
        help="what is optimised: "
        + " | ".join(parametrizations.PARAMETRIZATIONS)
        + f"; {Config.parametrization} by default",
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
    add(
        "--robust",
        type=float,
        metavar="RADIUS",
        help="train against attacks: each clip is first changed within an L2 ball of"
        " this radius, in units of pixels in [0, 1] over a whole clip, so as to mislead"
        " the model; what is synthesised from such weights is far easier to recognise."
        " 3 for the shipped ones (16 frames of 80 to 112 pixels)",
    )
    _add_attack(sub, attacks.Attack(1.0))
    add(
        "--attack-warmup",
        type=float,
        metavar="X",
        help="share of the run in which the radius grows, from a fifth;"
        f" {recipe.attack_warmup} by default",
    )
    add("--dtype", metavar="float32|bfloat16", help="compute type")
    add("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    _add_overwrite(sub)


def _add_attack(sub: argparse.ArgumentParser, default: attacks.Attack) -> None:
    sub.add_argument(
        "--attack-steps",
        type=int,
        metavar="N",
        help=f"steps of gradient ascent; {default.steps} by default",
    )
    sub.add_argument(
        "--attack-step",
        type=float,
        metavar="X",
        help=f"length of one, as a share of the radius; {default.step} by default",
    )
    sub.add_argument(
        "--attack-start",
        type=float,
        metavar="X",
        help="norm of the random change to start from, as a share of the radius;"
        f" {default.start} by default",
    )


def _add_accuracy(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, metavar="NAME@WEIGHTS")
    _add_data(sub, "--data", "labelled clips", required=True)
    sub.add_argument("--batch", type=int, default=32, metavar="N", help="at a time")
    sub.add_argument("--dtype", metavar="float32|bfloat16", help="compute type")
    sub.add_argument("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    sub.add_argument("--json", action="store_true", help="print JSON, not a table")
    strong = attacks.Attack(1.0).strong()
    sub.add_argument(
        "--attack",
        type=float,
        metavar="RADIUS",
        help="also measure under L2 attacks of this radius, in units of pixels in"
        " [0, 1] over a whole clip",
    )
    _add_attack(sub, strong)
    sub.add_argument(
        "--attack-restarts",
        type=int,
        metavar="N",
        help=f"random starts, all of which a clip must withstand; {strong.restarts} by"
        " default",
    )
    sub.add_argument(
        "--attack-clips",
        type=int,
        default=512,
        metavar="N",
        help="clips that are attacked at most; 512 by default",
    )


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders")
    sub.add_argument("--judges", nargs="+", required=True, metavar="NAME@WEIGHTS")
    sub.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="REPORT",
        help="a .json file; the page is written beside it, as .html",
    )
    sub.add_argument("--dtype", metavar="float32|bfloat16", help="compute type")
    _add_overwrite(sub)


def _add_bench(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--model", required=True, metavar="NAME[@WEIGHTS]", help="to be inverted")
    add("--verifier", metavar="NAME[@WEIGHTS]", help="none by default")
    add("--batch", type=int, required=True, metavar="N", help="videos, on all devices")
    add("--frames", type=int, metavar="N", help="of the model, with random weights")
    add("--size", type=int, metavar="N", help="likewise, in pixels")
    add("--verifier-size", type=int, metavar="N", help="likewise of the verifier")
    add("--dtype", metavar="float32|bfloat16", help="compute type")
    add("--remat", action="store_true", help="recompute blocks to save memory")
    add("--steps", type=int, default=50, metavar="N", help="of one call; 5 are timed")
    _add_parametrization(sub)
    add("--json", action="store_true", help="print JSON, not a table")


def _add_demo(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add(
        "--label",
        default="waving both hands",
        metavar="CLASS",
        help="a synthetic action",
    )
    add("--out", default="demo", metavar="DIR", help="folder of the run")
    add("--steps", default="250", metavar="N", help="250 by default")
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
        help=f"of a model; clips have frames * stride frames, {FPS} a second",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help="of every draw")
    add("--tfds", action="store_true", help="write the data set tfds:synthetic_actions")
    add("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
    _add_overwrite(sub)
