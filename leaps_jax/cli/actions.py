"""`leaps-jax actions`: shows the synthetic actions, and writes them as clips."""

import argparse
import sys
from pathlib import Path
from typing import Any

from leaps_jax.actions import dataset, gallery
from leaps_jax.cli import arguments
from leaps_jax.errors import UserError
from leaps_jax.model import FPS
from leaps_jax.progress import Steps


def add(commands: arguments.Commands) -> None:
    """Adds the command and its arguments."""
    sub = arguments.add_command(
        commands,
        "actions",
        run,
        "See the synthetic actions: a contact sheet, clips, and a data set for TFDS.",
        "leaps-jax actions --out actions/ --clips 4",
    )
    option = sub.add_argument
    default = gallery.Settings()
    option("--out", type=Path, metavar="DIR", help="folder of the contact sheet")
    option(
        "--clips",
        type=int,
        metavar="N",
        help="clips of each class: as DIR/clips/<class>/<clip>.mp4, none by default;"
        " with --tfds, to train on, 100 by default, and a fifth as many to test on",
    )
    option("--frames", type=int, default=default.frames, metavar="N", help="of a model")
    option("--size", type=int, default=default.size, metavar="N", help="pixels")
    option(
        "--stride",
        type=int,
        default=default.stride,
        metavar="N",
        help=f"of a model; clips have frames * stride frames, {FPS} a second",
    )
    option("--seed", type=int, default=default.seed, metavar="N", help="of every draw")
    option(
        "--tfds", action="store_true", help="write the data set tfds:synthetic_actions"
    )
    arguments.add_data_dir(sub)
    arguments.add_overwrite(sub)


def run(options: argparse.Namespace) -> int:
    """Writes a folder, a data set, or both."""
    if options.out is None and not options.tfds:
        raise UserError("out: missing; name a folder, or write a data set with --tfds")
    settings = gallery.Settings(
        options.frames, options.size, options.stride, options.seed
    )
    clips = options.clips or 0
    to_train = dataset.CLIPS if options.clips is None else options.clips
    place: dict[str, Any] = {"data_dir": options.data_dir}
    place["overwrite"] = options.overwrite
    # All that can be refused is refused before anything is rendered.
    if options.out is not None:
        gallery.check(options.out, clips, options.overwrite)
    if options.tfds:
        dataset.check(settings, to_train, **place)
    if options.out is not None:
        with Steps("render", gallery.total(clips)) as steps:
            lacking = gallery.write_folder(
                options.out,
                settings,
                clips,
                overwrite=options.overwrite,
                progress=lambda done: steps.update(done, {}),
            )
        if lacking:
            print(f"no sheet.mp4: {lacking}", file=sys.stderr)
        if clips:
            print(f"wrote {options.out / 'clips'}; use it as --data or --stimulus")
        print(f"results: {options.out / 'sheet.png'}")
    if options.tfds:
        with Steps("render", dataset.total(to_train)) as steps:
            name = dataset.write(
                settings,
                to_train,
                **place,
                progress=lambda done: steps.update(done, {}),
            )
        there = f" --data-dir {options.data_dir}" if options.data_dir else ""
        print(f"wrote tfds:{name}; use it as --data tfds:{name}/train{there}")
    return 0
