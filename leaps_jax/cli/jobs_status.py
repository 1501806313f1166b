"""`leaps-jax jobs status`: how far a table of jobs is."""

import argparse
from collections.abc import Sequence

from leaps_jax.cli import arguments
from leaps_jax.errors import printable
from leaps_jax.runs.jobs import status

_WIDTH = 48  # of a name


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "jobs",
        run,
        "Tell how far a table of jobs is: rows done, failed and running, the rate and"
        " the time left, by model and by worker. It reads the folder alone.",
        "leaps-jax jobs status videos/",
    )
    sub.add_argument("what", choices=["status"], help="how far it is")
    sub.add_argument(
        "dir",
        type=arguments.folder_or_address,
        metavar="DIR",
        help="the --out of `synthesize --jobs`",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the rows done, failed and running, then models and workers."""
    found = status.status(options.dir)
    whole = found.all
    of = "" if whole.rows is None else f" of {whole.rows}"
    parts = [f"{whole.done}{of} rows done", f"{whole.failed} failed"]
    parts.append(f"{found.running} running")
    if found.rate:
        parts.append(f"{found.rate:.3g} rows/s")
    if found.seconds_left is not None:
        parts.append(f"{_duration(found.seconds_left)} left")
    print(", ".join(parts))
    _table(
        ("model", "rows", "done", "failed"),
        [(m.name, m.rows, m.done, m.failed) for m in found.models],
    )
    _table(
        ("worker", "rows", "batches", "running", "rows/s", "last news", "model"),
        [
            (
                w.name,
                w.rows,
                w.batches,
                w.running,
                f"{w.rate:.3g}",
                f"{_duration(w.silent)} ago",
                w.model,
            )
            for w in found.workers
        ],
    )
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints columns, numbers to the right."""
    if not rows:
        return
    texts = [[printable(str(value), _WIDTH) for value in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print()
    for row in texts:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(w) for text, w in rest)]
        print("  ".join(cells).rstrip())


def _duration(seconds: float) -> str:
    """Seconds as people say it.

    >>> _duration(59.4), _duration(3720), _duration(200000)
    ('59 s', '62 min', '2.3 days')
    """
    for length, unit, most in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
