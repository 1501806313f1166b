"""`leaps-jax bench`: times the update step."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from leaps_jax import bench
from leaps_jax.cli import arguments, inputs
from leaps_jax.errors import UserError
from leaps_jax.model import Model
from leaps_jax.progress import Steps
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "bench",
        run,
        "Time the update step, with random weights if none are given.",
        "leaps-jax bench --model slow_r50 --verifier x3d_xs --batch 8 --json",
    )
    option = sub.add_argument
    option("--model", required=True, metavar="NAME[@WEIGHTS]", help="to be inverted")
    option("--verifier", metavar="NAME[@WEIGHTS]", help="none by default")
    option(
        "--batch", type=int, required=True, metavar="N", help="videos, on all devices"
    )
    option("--frames", type=int, metavar="N", help="of the model, with random weights")
    option("--size", type=int, metavar="N", help="likewise, in pixels")
    option("--verifier-size", type=int, metavar="N", help="likewise of the verifier")
    arguments.add_dtype(sub)
    option("--remat", action="store_true", help="recompute blocks to save memory")
    option(
        "--steps", type=int, default=50, metavar="N", help="of one call; 5 are timed"
    )
    arguments.add_parametrization(sub)
    option("--json", action="store_true", help="print JSON, not a table")


def run(options: argparse.Namespace) -> int:
    """Prints the time of a step and what decides it."""
    for name in ("batch", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"{name}={getattr(options, name)}: must be at least 1")
    inputs.check_parametrization(options)
    model = _load("model", options, options.frames, options.size)
    verifier = None
    if options.verifier is not None:
        verifier = _load("verifier", options, None, options.verifier_size)
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


def _load(
    argument: str, options: argparse.Namespace, frames: int | None, size: int | None
) -> Model:
    """The model that an argument names, with random weights if it names none."""
    reference = getattr(options, argument)
    settings: dict[str, Any] = {"dtype": options.dtype, "remat": options.remat}
    if "@" not in reference:
        classes = zoo.KINETICS_400
        try:
            return loading.initialize(
                reference, classes, frames=frames, size=size, **settings
            )
        except UserError as error:
            said = str(error).removeprefix(f"model={reference!r}: ")
            raise UserError(f"{argument}={reference!r}: {said}") from None
    if frames is not None or size is not None:
        raise UserError(
            f"{argument}={reference!r}: weights have frames and a size of their own;"
            " leave these out, or the weights"
        )
    return loading.load_model(reference, argument=argument, **settings)
