"""`leaps-jax demo`: inverts a model that comes with the project."""

import argparse
import shlex
import sys

from leaps_jax.actions import motions
from leaps_jax.cli import arguments, synthesize
from leaps_jax.errors import UserError, nearest

# Small networks, so that two cores suffice.
WORDS = """--model vivit_small@robust
 --judge slow_r50_tiny@actions timesformer_small@actions --preview-every 50"""


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "demo",
        run,
        "Invert a model that comes with the project: nothing to download.",
        'leaps-jax demo --label "jumping jack" --out demo/',
    )
    option = sub.add_argument
    option(
        "--label",
        default="waving both hands",
        metavar="CLASS",
        help=f"a synthetic action: {', '.join(motions.CLASSES)}",
    )
    option("--out", default="demo", metavar="DIR", help="folder of the run")
    option("--steps", default="150", metavar="N", help="150 by default")
    option("--seed", default="1", metavar="N", help="of stimulus and noise")
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Runs the `leaps-jax synthesize` that it prints."""
    if options.label not in motions.CLASSES:
        hint = nearest(options.label, motions.CLASSES)
        raise UserError(
            f"label={options.label!r}: no synthetic action; {hint} `leaps-jax demo"
            " --help` lists all"
        )
    words = ["synthesize", *WORDS.split(), "--steps", options.steps]
    words += ["--seed", options.seed, "--out", options.out]
    words += ["--stimulus", f"actions:{options.label}/{options.seed}"]
    if options.overwrite:
        words.append("--overwrite")
    print(shlex.join(["leaps-jax", *words]), file=sys.stderr)
    return synthesize.run(arguments.parser(synthesize.add).parse_args(words))
