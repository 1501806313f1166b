"""`leaps-jax accuracy`: measures how often a model is right on labelled clips."""

import argparse
import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaps_jax import attacks, evaluation, training
from leaps_jax.actions import motions
from leaps_jax.cli import arguments, inputs
from leaps_jax.errors import UserError, printable
from leaps_jax.progress import Steps
from leaps_jax.zoo import load as loading


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "accuracy",
        run,
        "Measure how often a model is right on labelled clips.",
        "leaps-jax accuracy --model x3d_xs@actions --data synthetic_actions",
    )
    sub.add_argument("--model", required=True, metavar="NAME@WEIGHTS")
    arguments.add_data(sub, "--data", "labelled clips", required=True)
    sub.add_argument("--batch", type=int, default=32, metavar="N", help="at a time")
    arguments.add_dtype(sub)
    arguments.add_data_dir(sub)
    sub.add_argument("--json", action="store_true", help="print JSON, not a table")
    strong = attacks.Attack(1.0).strong()
    sub.add_argument(
        "--attack",
        type=float,
        metavar="RADIUS",
        help="also measure under L2 attacks of this radius, in units of pixels in"
        " [0, 1] over a whole clip",
    )
    arguments.add_attack(sub, strong)
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


def run(options: argparse.Namespace) -> int:
    """Prints the accuracy by class, and under attack if asked for."""
    attack = inputs.attack("attack", lambda r: attacks.Attack(r).strong(), options)
    for name in ("batch", "attack_clips"):
        value = getattr(options, name)
        if value < 1:
            given = f"{name.replace('_', '-')}={value}"
            raise UserError(f"{given}: must be at least 1")
    model = loading.load_model(options.model, dtype=options.dtype)
    inputs.check_classes("data", options, model.spec.classes)
    data = inputs.held_out_clips("data", options, model.spec)
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
    else:
        Console().print(_table(found))
    return 0


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, value in sorted(found["classes"].items(), key=lambda item: item[1]):
        # as text, since a name in brackets is markup to rich
        table.add_row(Text(printable(name)), f"{value:.1%}")
    for name, value in found["reversed_pairs"].items():
        table.add_row(f"{name}: which of the two", f"{value['choice']:.1%}")
    table.add_row(f"all {found['clips']} clips", f"{found['top1']:.1%}", style="bold")
    if attack := found.get("attack"):
        table.add_row(
            f"{attack['clips']} clips under attack, radius {attack['radius']:g}",
            f"{attack['top1']:.1%}",
            style="bold",
        )
    return table
