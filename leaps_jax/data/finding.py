"""Finds the clips that names stand for: files, folders of frames, trees of classes."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from leaps_jax.data import arrays, ffmpeg
from leaps_jax.errors import UserError, bad_argument

PathLike = str | os.PathLike[str]

_FILES = ffmpeg.SUFFIXES + arrays.SUFFIXES
_ACCEPTED = f"{' '.join(_FILES)} or a folder of {' '.join(arrays.FRAMES)} frames"


@dataclasses.dataclass(frozen=True)
class Clip:
    """Where a clip lies.

    Attributes:
      path: a file or a folder of frames.
      label: the name of its class folder; None outside a `<class>/<clip>` tree.
    """

    path: Path
    label: str | None = None


def find_clips(
    paths: PathLike | Sequence[PathLike], *, argument: str = "stimulus"
) -> list[Clip]:
    """Lists the clips of files, folders of frames, and folders of clips or classes.

    Hidden files and, inside folders, files of other kinds are passed over.

    Args:
      paths: what to look through, in order; the contents of folders are sorted.
      argument: the name that errors give to `paths`.

    Raises:
      UserError: a path does not exist, is of an unknown kind, or holds no clip.

    >>> find_clips("data")  # doctest: +SKIP
    [Clip(path=Path('data/run/a.mp4'), label='run'), ...]
    """
    clips: list[Clip] = []
    for path in listed(paths, argument):
        path = expanded(path)
        try:
            clips += _find_in(path, argument)
        except OSError as error:
            raise unreadable(argument, path, error) from None
    return clips


def expanded(path: PathLike) -> Path:
    """Puts the home folder for `~/`; a clip may have a name that starts with ~."""
    path = Path(path)
    with contextlib.suppress(RuntimeError):  # the user has no home
        return path.expanduser() if path.parts[:1] == ("~",) else path
    return path


def _find_in(path: Path, argument: str) -> list[Clip]:
    if not path.exists():
        hint = "no such file or folder; a TFDS data set is written tfds:NAME/SPLIT"
        raise bad_argument(argument, path, hint)
    if _is_clip(path):
        return [Clip(path)]
    if not path.is_dir():
        kind = (
            f"{path.suffix!r} is not a clip's extension" if path.suffix else "no clip"
        )
        raise bad_argument(argument, path, f"{kind}; accepted: {_ACCEPTED}")
    clips = []
    for child in _children(path):
        if _is_clip(child):
            clips.append(Clip(child))
        elif child.is_dir():
            if not child.name.isprintable():  # it would be written in many places
                fault = "has unprintable characters"
                if "\udc80" <= max(child.name) <= "\udcff":  # bytes, as Python has them
                    fault = "is not UTF-8"
                what = f"the class folder {child.name!r} {fault}"
                raise bad_argument(argument, path, f"{what}; rename it")
            inside = [Clip(c, child.name) for c in _children(child) if _is_clip(c)]
            if not inside:
                what = f"the class folder {child.name!r} holds no clips"
                raise bad_argument(argument, path, f"{what}; fill or remove it")
            clips += inside
    if not clips:
        raise bad_argument(argument, path, f"holds no clips; accepted: {_ACCEPTED}")
    return clips


def _is_clip(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix.lower() in _FILES
    children = _children(path)
    # A poster image beside videos does not make their folder a clip.
    return any(arrays.is_frame(c) for c in children) and not any(
        c.is_dir() or c.suffix.lower() in _FILES for c in children
    )


def _children(folder: Path) -> list[Path]:
    return sorted(c for c in folder.iterdir() if not c.name.startswith("."))


def listed(paths: PathLike | Sequence[PathLike], argument: str) -> Sequence[PathLike]:
    """One path or several, as several; UserError where there is none."""
    found = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not found:
        raise UserError(f"{argument}=[]: give at least one clip")
    if "" in found:  # which would be the folder that one is in
        raise UserError(f"{argument}='': is no name; give a clip")
    return found


def unreadable(argument: str, name: object, error: OSError) -> UserError:
    """The error of a clip or a folder that the system does not let be read."""
    what = f"cannot be read ({error.strerror or error}); check name and permissions"
    return bad_argument(argument, name, what)
