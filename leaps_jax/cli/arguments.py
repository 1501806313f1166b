"""The parser of `leaps-jax`, and arguments that several commands have."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from leaps_jax import attacks, parametrizations
from leaps_jax.actions import scenes
from leaps_jax.config import Config
from leaps_jax.errors import printable
from leaps_jax.version import __version__

#: What `add` of a command adds to. argparse has no public name for it.
Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

BATCH = 8  # videos of a table that are optimised at a time


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        said = f"error: {printable(message, 300)}; see --help"
        print(f"{self.prog}: {said}", file=sys.stderr)
        raise SystemExit(2)


def parser(*adds: Callable[[Commands], None]) -> argparse.ArgumentParser:
    """The parser of some commands, each with the function that adds it.

    In what it parses, `command` is the name of one, and `run` is what runs it.
    """
    whole = _Parser(prog="leaps-jax", description="See what a video model has learnt.")
    whole.add_argument(
        "--version", action="version", version=f"leaps-jax {__version__}"
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in adds:
        add(commands)
    return whole


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds a command without arguments."""
    sub = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(summary, 78),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run)
    return sub


def folder_or_address(text: str) -> Path | str:
    """A path, or an address of an object store as it is.

    >>> folder_or_address("s3://bucket/videos")
    's3://bucket/videos'
    """
    return text if re.match(r"[a-z0-9]+://", text) else Path(text)


def add_overwrite(sub: argparse.ArgumentParser) -> None:
    """Adds --overwrite."""
    sub.add_argument(
        "--overwrite", action="store_true", help="replace what is there already"
    )


def add_save_every(sub: argparse.ArgumentParser) -> None:
    """Adds --save-every."""
    sub.add_argument(
        "--save-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how often the state is saved for resuming; 30 by default",
    )


def add_tensorboard(sub: argparse.ArgumentParser) -> None:
    """Adds --tensorboard."""
    sub.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="folder for events, to follow the work with `tensorboard --logdir DIR`",
    )


def add_dtype(sub: argparse.ArgumentParser) -> None:
    """Adds --dtype."""
    sub.add_argument("--dtype", metavar="float32|bfloat16", help="compute type")


def add_data_dir(sub: argparse.ArgumentParser) -> None:
    """Adds --data-dir."""
    sub.add_argument("--data-dir", metavar="DIR", help="where tfds: data sets are kept")


def add_data(
    sub: argparse.ArgumentParser, flag: str, what: str, required: bool = False
) -> None:
    """Adds an argument for a data set of labelled clips."""
    sub.add_argument(
        flag,
        required=required,
        metavar="DIR|tfds:NAME/split|NAME",
        help=f"{what}: a <class>/<clip> tree, a TFDS data set, or one that is rendered"
        f" while it is used ({', '.join(scenes.RENDERED)})",
    )


def add_parametrization(sub: argparse.ArgumentParser) -> None:
    """Adds --parametrization."""
    sub.add_argument(
        "--parametrization",
        default=Config.parametrization,
        metavar="NAME",
        help="what is optimised: "
        + " | ".join(parametrizations.PARAMETRIZATIONS)
        + f"; {Config.parametrization} by default",
    )


def add_attack(sub: argparse.ArgumentParser, default: attacks.Attack) -> None:
    """Adds the settings of an attack, beside its radius."""
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
