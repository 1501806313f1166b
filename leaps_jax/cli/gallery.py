"""`leaps-jax gallery`: shows finished runs, classes by models."""

import argparse
from pathlib import Path

from leaps_jax.cli import arguments
from leaps_jax.progress import Steps
from leaps_jax.runs import gallery


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "gallery",
        run,
        "Show finished runs side by side: a grid of classes by models, a page for each"
        " class and each model, filters and search, in a folder for any browser.",
        "leaps-jax gallery run/ jack/ --out gallery/",
    )
    sub.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of finished runs, which synthesize wrote",
    )
    sub.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the gallery"
    )
    sub.add_argument(
        "--columns",
        default="model",
        metavar="|".join(gallery.COLUMNS),
        help="what has a column of its own: each model, with all its runs (model, by"
        " default), or each run, by the name of its folder (run)",
    )
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Writes the gallery, and says where."""
    gallery.check(options.out, options.overwrite)
    items = gallery.read(options.runs, options.columns)
    with Steps("gallery", len(items), unit="videos", brief=True) as steps:
        gallery.write(options.out, items, lambda done: steps.update(done, {}))
    print(f"{len(items)} videos: {options.out / 'index.html'}")
    return 0
