"""`leaps-jax models`: lists the zoo."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from leaps_jax.cli import arguments
from leaps_jax.zoo import build as zoo


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands, "models", run, "List the zoo.", "leaps-jax models --json"
    )
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, not a table")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of README"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the zoo and the addresses of public weights."""
    if options.json:
        print(json.dumps(zoo.table(), indent=1))
    elif options.markdown:
        print(zoo.markdown())
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(_table())
        console.print("\nPublic weights:")
        for row in zoo.table():
            for address in row["weights"]:
                console.print(f" {row['name']:<20} {address}", soft_wrap=True)
    return 0


def _table() -> Table:
    table = Table(box=None, header_style="bold")
    for column in zoo.COLUMNS:
        numeric = column in ("parameters", "GMACs", "taps")
        justify: Any = "right" if numeric else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for row in zoo.cells():
        table.add_row(*row)
    return table
