"""The results of a finished run, read again: its folder may come from anyone."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax import schemas
from leaps_jax.data import limits
from leaps_jax.errors import UserError
from leaps_jax.runs import media


def read(folder: Path) -> dict[str, Any]:
    """The results of a run: `videos` and `stimuli` (n, t, h, w, 3), and n `classes`.

    Its `settings` and `identity` are those of run.json, empty where it has none;
    `saved` are the videos as read back from their mp4 files, None where one is missing.

    Raises:
      UserError: there is no run, or it has no results yet.
    """
    run, remedy = f"run={str(folder)!r}", "give a folder that synthesize wrote"
    try:
        record = schemas.read(
            folder / "run.json",
            schemas.RunResults,
            f"so it is no finished run; {remedy}",
        )
        found: dict[str, Any] = _arrays(folder / "videos.npz", len(record.classes))
    except OSError as error:
        reason = error.strerror or error
        what = f"holds no finished run ({reason}: {error.filename}); {remedy}"
        raise UserError(f"{run}: {what}") from None
    except UserError as error:
        raise UserError(f"{run}: {error}") from None
    found |= record.model_dump(include={"settings", "identity", "classes"})
    saved = media.read_videos(folder, record.classes, found["videos"])
    return found | {"saved": saved}


def _arrays(path: Path, count: int) -> dict[str, np.ndarray]:
    """`videos` and `stimuli` of a file, which may be anybody's."""
    remedy = "give a whole run"
    try:
        with zipfile.ZipFile(path) as archive:
            stored = sum(info.file_size for info in archive.infolist())
        limits.check_stored(stored)
        with path.open("rb") as file, np.load(file) as arrays:
            found = {name: arrays[name] for name in ("videos", "stimuli")}
    except (MemoryError, OSError):
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged zip raises many kinds
        what = f"is damaged ({str(error)[:100]}), so it is no finished run"
        raise UserError(f"{path}: {what}; {remedy}") from None
    videos, stimuli = found["videos"], found["stimuli"]
    for name, values in found.items():
        if not np.issubdtype(values.dtype, np.floating):
            what = f"{name} of type {values.dtype}: must be float"
            raise UserError(f"{path}: {what}; {remedy}")
        if values.size and not (values.min() >= 0 and values.max() <= 1):  # nor NaN
            what = f"{name}: pixels are not in [0, 1]"
            raise UserError(f"{path}: {what}; {remedy}")
    if videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
        what = f"videos of shape {videos.shape}: must be (n, t, h, w, 3)"
        raise UserError(f"{path}: {what}; {remedy}")
    if len(videos) != count:
        what = f"{len(videos)} videos, and run.json has {count} classes"
        raise UserError(f"{path}: {what}; {remedy}")
    if stimuli.shape not in (videos.shape, (0, *videos.shape[1:])):
        what = f"stimuli of shape {stimuli.shape}: must be that of the videos"
        raise UserError(f"{path}: {what}, {videos.shape}; {remedy}")
    return found
