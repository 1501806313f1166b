"""A gallery of finished runs: classes by models, in a folder that any browser shows.

    index.html                 a grid: a row for each class, a column for each model
    class-*.html model-*.html  all videos of one, beside the clips that went in
    media/                     mp4 files and a picture of each
    gallery.json               the names of all these files

Links are relative: the folder can be moved, served, or opened from a disk.
"""

import dataclasses
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import files, pages, render, schemas
from leaps_jax.errors import UserError, bad_argument
from leaps_jax.runs import command, ownership, previews
from leaps_jax.runs.page import method
from leaps_jax.runs.verdicts import Seen
from leaps_jax.zoo import checkpoints

COLUMNS = ("model", "run")
_SIDE = 192  # pixels of a picture
#: What a gallery may have written, and so may delete.
_OWN = r"index\.html|(class|model)-\w+\.html|media/\w+\.(mp4|jpg)"


@dataclasses.dataclass(frozen=True)
class Item:
    """A video of a run.

    Attributes:
      label: its class.
      column: the model that it is of, or the run.
      folder: of the run.
      number: of the video in the run.
      source: its mp4 file.
      given: the mp4 file of the clip that went in, if there is one.
      name: of its files in `media/`, without what kind they are.
      about: how it was made.
      seen: what the judges see.
    """

    label: str
    column: str
    folder: Path
    number: int
    source: Path
    given: Path | None
    name: str
    about: str
    seen: Seen


def read(folders: Sequence[Path], columns: str = "model") -> list[Item]:
    """The videos of finished runs.

    Args:
      folders: of the runs.
      columns: what is side by side: "model" or "run".

    Raises:
      UserError: names the folder that is no finished run, or has no mp4 files.
    """
    if columns not in COLUMNS:
        raise UserError(f"columns={columns!r}: must be {' or '.join(COLUMNS)}")
    records = {folder: _record(folder) for folder in dict.fromkeys(folders)}
    methods = {_method(record) for record in records.values()}
    found: list[Item] = []
    for place, (folder, record) in enumerate(records.items()):
        column = folder.resolve().name
        if columns == "model" and record["settings"]["model"]:
            column = command.portable(record["settings"]["model"])
            if len(methods) > 1:
                column += f", {_method(record)}"
        found += _items(folder, record, column, place)
    return found


def check(out: Path, overwrite: bool) -> None:
    """Raises UserError where a gallery cannot be written, or something else is."""
    if reason := checkpoints.unwritable(out):
        raise bad_argument("out", out, f"{reason}; choose another folder")
    if out.exists() and not out.is_dir():
        raise bad_argument("out", out, "is a file; choose another folder")
    ownership.check_links(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if _listed(out) is None:
        raise bad_argument("out", out, "is no gallery; choose another folder")
    if not overwrite:
        raise bad_argument("out", out, "exists; choose another folder or --overwrite")


def write(
    out: Path,
    items: Sequence[Item],
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes a gallery in the place of one that the folder may hold.

    Args:
      out: the folder, which `check` has seen.
      items: from `read`.
      progress: called with how many videos are copied.
    """
    _forget(out)
    (out / "media").mkdir(parents=True, exist_ok=True)
    labels = _slugs("class", (item.label for item in items))
    columns = _slugs("model", (item.column for item in items))
    written = {f"{slug}.html" for slug in (*labels.values(), *columns.values())}
    written |= {f"media/{name}" for item in items for name in _media(item)}
    files.write_json(out / "gallery.json", {"files": ["index.html", *sorted(written)]})
    done = 0
    for folder in dict.fromkeys(item.folder for item in items):
        own = [item for item in items if item.folder == folder]
        for item, made, given in zip(own, *_pictures(folder), strict=False):
            _copy(out / "media", item, made, given)
            progress(done := done + 1)
    for path, page in _pages(items, labels, columns):
        files.write(out / path, page)


def _record(folder: Path) -> dict[str, Any]:
    remedy = "make the run again"
    path = folder / "run.json"
    try:
        record = schemas.read(path, schemas.RunStatus, remedy)
        if record.status == "finished":
            found = record.model_dump()
            shown = schemas.checked(path, found, schemas.RunShown, remedy).model_dump()
    except OSError:
        what = "holds no run; give a folder that synthesize wrote"
        raise bad_argument("run", folder, what) from None
    except UserError as error:
        raise bad_argument("run", folder, error) from None
    if record.status != "finished":
        what = f"is {record.status} at step {record.step}"
        remedy = "finish it with the command that began it"
        raise bad_argument("run", folder, f"{what}; {remedy}")
    if "videos_not_written" in shown:
        remedy = "install what its run.json names and run it again"
        raise bad_argument("run", folder, f"has no mp4 files; {remedy}")
    return shown


def _items(
    folder: Path, record: Mapping[str, Any], column: str, place: int
) -> Iterator[Item]:
    """The videos of a run, of which `place` other runs come first."""
    config = record["settings"]["config"]
    about = [
        _method(record),
        *(f"{k} {config[k]}" for k in ("steps", "seed") if k in config),
    ]
    classes = record["classes"]
    try:
        seen = [
            Seen.of(record["judges"], number, label)
            for number, label in enumerate(classes)
        ]
    except IndexError:
        what = "its run.json has fewer verdicts than classes; make the run again"
        raise bad_argument("run", folder, what) from None
    for number, file in enumerate(render.file_names(classes)):
        source = folder / "videos" / f"{file}.mp4"
        if not source.is_file():
            what = f"lacks videos/{file}.mp4; make the run again"
            raise bad_argument("run", folder, what)
        given = source.with_name(f"{file}_stimulus.mp4")
        yield Item(
            classes[number],
            column,
            folder,
            number,
            source,
            given if given.is_file() else None,
            f"{place:03d}_{file}",
            ", ".join(about),
            seen[number],
        )


def _method(record: Mapping[str, Any]) -> str:
    return method(record["settings"])[0] or "made in Python"


def _media(item: Item) -> list[str]:
    kinds = ["", *(["_stimulus"] if item.given else [])]
    return [f"{item.name}{kind}{end}" for kind in kinds for end in (".mp4", ".jpg")]


def _copy(folder: Path, item: Item, made: np.ndarray, given: np.ndarray | None) -> None:
    """Copies the files of a video, with the middle frame of each as a picture."""
    for kind, source, frames in (
        ("", item.source, made),
        ("_stimulus", item.given, given),
    ):
        if source is None or frames is None:
            continue
        shutil.copyfile(source, folder / f"{item.name}{kind}.mp4")
        picture = previews.strip(frames[len(frames) // 2, None], _SIDE)
        files.write(folder / f"{item.name}{kind}.jpg", picture)


def _pictures(
    folder: Path,
) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray | None]]:
    """The videos and the clips of a run; of no clips, None for ever."""
    made, given = (_each(folder, name) for name in ("videos", "stimuli"))

    def padded() -> Iterator[np.ndarray | None]:
        yield from given
        while True:
            yield None

    return made, padded()


def _each(folder: Path, name: str) -> Iterator[np.ndarray]:
    """One by one, because all of a large run's videos may not fit in memory."""
    try:
        with (
            zipfile.ZipFile(folder / "videos.npz") as held,
            held.open(f"{name}.npy") as file,
        ):
            np.lib.format.read_magic(file)
            (n, *shape), _, kind = np.lib.format.read_array_header_1_0(file)
            size = int(np.prod(shape)) * kind.itemsize
            for _ in range(n):
                yield np.frombuffer(file.read(size), kind).reshape(shape)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        what = "its videos.npz is missing or damaged; make the run again"
        raise bad_argument("run", folder, what) from None


def _slugs(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Names of pages, of which no two are alike even where letters' case is not seen.

    >>> _slugs("class", ["jump", "Jump!"])
    {'jump': 'class-jump', 'Jump!': 'class-Jump_2'}
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        base = slug = f"{kind}-{render.safe_name(name)}"
        number = 1
        while slug.casefold() in {other.casefold() for other in found.values()}:
            number += 1
            slug = f"{base}_{number}"
        found[name] = slug
    return found


def _pages(
    items: Sequence[Item], labels: Mapping[str, str], columns: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Paths and pages, the index last."""
    labels = dict(sorted(labels.items(), key=lambda pair: pair[0].casefold()))
    shared: dict[str, Any] = {
        "labels": labels,
        "columns": columns,
        "script": "gallery.js",
    }
    cells: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        cells.setdefault((item.label, item.column), []).append(item)
    for label, slug in labels.items():
        own = [i for column in columns for i in cells.get((label, column), [])]
        found: dict[str, Any] = {"title": label, "items": own, "heads": "column"}
        yield f"{slug}.html", pages.render("gallery_part.html", **shared, **found)
    for column, slug in columns.items():
        own = [i for label in labels for i in cells.get((label, column), [])]
        found = {"title": column, "items": own, "heads": "label"}
        yield f"{slug}.html", pages.render("gallery_part.html", **shared, **found)
    title = f"{len(labels)} classes by {len(columns)} models"
    index: dict[str, Any] = {"title": title, "cells": cells, "total": len(items)}
    yield "index.html", pages.render("gallery.html", **shared, **index)


def _listed(out: Path) -> list[str] | None:
    try:
        record = schemas.read(out / "gallery.json", schemas.GalleryRecord, "delete it")
    except (OSError, UserError):
        return None
    return record.files


def _forget(out: Path) -> None:
    """Deletes the gallery that a folder holds; files of others stay."""
    for name in _listed(out) or ():
        if re.fullmatch(_OWN, name):
            (out / name).unlink(missing_ok=True)
