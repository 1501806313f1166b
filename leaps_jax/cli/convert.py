"""`leaps-jax convert`: makes a checkpoint of published weights."""

import argparse
import dataclasses
from pathlib import Path

from leaps_jax.cli import arguments, inputs
from leaps_jax.data.clips import load_labelled
from leaps_jax.errors import UserError
from leaps_jax.progress import Steps
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import checkpoints
from leaps_jax.zoo import load as loading


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "convert",
        run,
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
        help=".pth .pyth .pt .bin .pkl .safetensors, a checkpoint of Flax, a Hugging"
        " Face folder, hf:OWNER/REPO, or https://HOST/FILE",
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="folder of the checkpoint")
    sub.add_argument(
        "--moments",
        metavar="DIR",
        help="clips to estimate tap statistics from, so that a model without batch"
        " norm can be a verifier",
    )
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Writes the checkpoint."""
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
            clips, _ = load_labelled(
                options.moments,
                model.spec,
                short="loop",
                progress=lambda done, total: steps.update(done, total=total),
                argument="moments",
            )
        model = dataclasses.replace(model, moments=inputs.moments(model, clips))
    loading.save(model, options.out, overwrite=options.overwrite)
    print(f"wrote {options.out}; use it as --model {model.spec.name}@{options.out}")
    return 0
