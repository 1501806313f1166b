"""`leaps-jax models`: lists the zoo."""

import argparse
import json

from rich.console import Console
from rich.table import Table

from leaps_jax import taps
from leaps_jax.cli import arguments
from leaps_jax.model import Model
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import references

_SHORT = ("name", "clip", "parameters", "GMACs", "licence of public weights")


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "models",
        run,
        "List all networks and the weights that come with the package, or tell all of"
        " one network: its size, its public weights, its taps.",
        "leaps-jax models timesformer",
    )
    sub.add_argument(
        "model",
        nargs="?",
        metavar="NAME",
        help="the network to tell all of, without @ and weights",
    )
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, not a table")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of the documentation"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the zoo, or a model and the addresses of its public weights."""
    if options.model:
        zoo.entry(options.model)  # or it is refused
    rows = [row for row in zoo.table() if options.model in (None, row["name"])]
    if options.json:
        print(json.dumps(rows, indent=1))
    elif options.markdown:
        print(zoo.markdown())
    elif options.model:
        _tell(options.model, rows[0]["weights"])
    else:
        print("Trained weights that come with this package:")
        for name in zoo.names():
            for weights in references.shipped(name):
                print(f"  {name}@{weights}")
        print()
        Console(width=80).print(_table())
        print("\nleaps-jax models NAME: more of one, and where its weights are")
    return 0


def _table() -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in _SHORT:
        numeric = column in ("parameters", "GMACs")
        title = column.removesuffix(" of public weights")
        table.add_column(
            title,
            justify="right" if numeric else "left",
            no_wrap=title != "licence",
            overflow="fold",
        )
    wanted = [zoo.COLUMNS.index(column) for column in _SHORT]
    for row in zoo.cells():
        table.add_row(*(row[i] for i in wanted))
    return table


def _taps(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's taps, for a clip of its usual frames and size."""
    module, spec = zoo.build(name, ("any",))
    return taps.tap_shapes(Model(module, zoo.variable_shapes(module), spec))


def _tell(name: str, addresses: list[str]) -> None:
    (row,) = [row for row in zoo.cells() if row[0] == name]
    width = max(map(len, zoo.COLUMNS))
    for column, cell in zip(zoo.COLUMNS, row, strict=True):
        print(f"{column:<{width}}  {cell}")
    for weights in references.shipped(name):
        print(f"{'comes with':<{width}}  {name}@{weights}")
    for address in addresses:
        print(f"{'public weights':<{width}}  {address}")
    print("\ntaps for --objective: channels x positions")
    for number, (tap, (_, *positions, channels)) in enumerate(_taps(name).items()):
        grid = "x".join(map(str, positions))
        print(f"{number:5}  {tap:<{width}}  {channels} x {grid}")
    if addresses:
        print(f"\nWrite --model {name}@{references.written(addresses[0])}")
        print(f"or download one and write --model {name}@FILE")
