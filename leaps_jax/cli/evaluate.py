"""`leaps-jax evaluate`: asks judges about finished runs."""

import argparse
import functools
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from leaps_jax import files
from leaps_jax.actions import motions
from leaps_jax.cli import arguments
from leaps_jax.errors import UserError
from leaps_jax.evaluation import page, tables
from leaps_jax.progress import Steps
from leaps_jax.runs import comparison, results
from leaps_jax.zoo import checkpoints
from leaps_jax.zoo import load as loading

#: What the synthetic actions know of their motions.
PARTNERS = {"reversed": motions.REVERSED, "mirrored": motions.MIRRORED}


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "evaluate",
        run,
        "Ask judges about finished runs: what they see, whether the order of frames"
        " matters to them, and how the videos move. Writes a table, JSON, and a page"
        " with plots. Judges that took part in a run do not count.",
        "leaps-jax evaluate run/ --judges x3d_xs@actions --out report.json",
    )
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders")
    sub.add_argument(
        "--judges",
        nargs="+",
        required=True,
        action="extend",
        metavar="NAME@WEIGHTS",
        help="models that took no part in the runs",
    )
    sub.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="REPORT",
        help="a .json file; the page is written beside it, as .html",
    )
    arguments.add_dtype(sub)
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Writes the report as JSON and as a page, and prints its tables."""
    shown = _check_out(options)
    finished = {str(folder): results.read(folder) for folder in options.runs}
    load = functools.partial(loading.load_model, dtype=options.dtype, argument="judges")
    judges = {name: load(name) for name in options.judges}
    questions = comparison.questions(finished, judges)
    with Steps("judge", questions, unit="questions") as steps:
        found = comparison.compare(
            finished, judges, PARTNERS, lambda done: steps.update(done, {})
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = page.page(found, finished)
    files.write_together({shown: drawn, options.out: files.as_json(found)})
    console = Console(width=None if sys.stdout.isatty() else 1000)
    for rows in tables.of(found):
        console.print(tables.drawn(rows))
        console.print(Text(rows.note and f"{rows.note}\n", style="dim"), width=80)
    for line in (*tables.notes(found), f"numbers: {options.out}"):
        print(line)
    print(f"what they mean, and plots: {shown}")
    return 0


def _check_out(options: argparse.Namespace) -> Path:
    """The page beside a report; refuses where one of them cannot be written."""
    reason = checkpoints.unwritable(options.out)
    if reason is None and options.out.is_dir():
        reason = "is a folder"
    if reason:
        raise UserError(f"out={str(options.out)!r}: {reason}; choose another file")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"out={str(options.out)!r}: exists; use --overwrite")
    shown = options.out.with_suffix(".html")
    reason = "is for JSON; end it in .json" if shown == options.out else None
    if shown.is_dir():
        reason = f"{shown.name} beside it is a folder; choose another file"
    elif shown.exists() and not options.overwrite:
        reason = f"{shown.name} beside it exists; use --overwrite"
    if reason:
        raise UserError(f"out={str(options.out)!r}: {reason}")
    return shown
