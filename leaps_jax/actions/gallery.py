"""Which clips of the synthetic actions there are, and a folder that shows them.

A clip is named by a seed, a collection ("files", "train" or "test"), a class and a
number, and is rendered from those alone; no two collections share one. Frames are 30
a second, `stride` times as many as a model takes, so that a model with this stride
sees what a rendering at 30 / stride frames a second shows.

>>> settings = Settings(frames=16, size=112, stride=2)
>>> draw(settings, "train", label=0, number=7).video.shape  # doctest: +SKIP
(32, 112, 112, 3)
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from leaps_jax import render
from leaps_jax.actions import motions, scenes
from leaps_jax.data import limits
from leaps_jax.errors import UserError
from leaps_jax.model import FPS, MOST_FRAMES, MOST_SIZE
from leaps_jax.runs import contact_sheet
from leaps_jax.zoo import checkpoints

COLLECTIONS = ("files", "train", "test")
_PLAYED = 3  # times that the sheet's video repeats, since a clip lasts a second
_FILES = r"sheet\.png|sheet\.mp4|clips/({})/\d{{3,}}\.mp4".format(
    "|".join(map(re.escape, motions.CLASSES))
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The appearance of a clip.

    Attributes:
      frames: that a model takes of it.
      size: height and width in pixels.
      stride: source frames between two of a model's frames.
      seed: of every random draw.
    """

    frames: int = 16
    size: int = 112
    stride: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"frames": 2, "size": 16, "stride": 1}.items():
            if getattr(self, name) < least:
                found = f"{name}={getattr(self, name)}"
                raise UserError(f"{found}: must be at least {least}")
        if self.source_frames > MOST_FRAMES or self.size > MOST_SIZE:
            what = f"the most are {MOST_FRAMES} frames in all, of {MOST_SIZE} pixels"
            given = f"frames={self.frames} size={self.size} stride={self.stride}"
            raise UserError(f"{given}: {what}; lower them")
        drawn = self.source_frames * self.size**2 * 3 * 4  # bytes
        limits.check_kept(drawn, f"size={self.size}: a clip", "lower it, or --frames")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be from 0 to {2**32 - 1}")

    @property
    def source_frames(self) -> int:
        """Frames of a clip at `FPS`."""
        return self.frames * self.stride


def key_of(seed: int, collection: str, label: int, number: int) -> jax.Array:
    """The key from which a clip is rendered."""
    key = jax.random.key(seed)
    for part in (COLLECTIONS.index(collection), label, number):
        key = jax.random.fold_in(key, part)
    return key


def draw(settings: Settings, collection: str, label: int, number: int) -> scenes.Scene:
    """Renders one clip with its ground truth.

    Args:
      settings: of the clip.
      collection: one of `COLLECTIONS`.
      label: index into `motions.CLASSES`.
      number: of the clip in its class.

    Returns:
      A scene of numpy arrays, the video (t, h, w, 3) uint8.
    """
    scene = scenes.render(
        key_of(settings.seed, collection, label, number),
        label,
        frames=settings.source_frames,
        size=settings.size,
        fps=FPS,
    )
    scene = jax.tree.map(np.asarray, scene)
    return scene._replace(video=np.rint(scene.video * 255).astype(np.uint8))


def total(clips: int = 0) -> int:
    """Clips that `write_folder` renders."""
    return len(motions.CLASSES) * max(1, clips)


def write_folder(
    folder: Path,
    settings: Settings,
    clips: int = 0,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str | None:
    """Writes a contact sheet of all classes, and clips of them.

    `sheet.png` has a row of frames for each class, `sheet.mp4` plays them all, and
    `clips/<class>/<number>.mp4` are what they were taken from. The sheet shows the
    first clip of each class.

    Args:
      folder: where; it is made.
      settings: of the clips.
      clips: files for each class.
      overwrite: replace what an earlier call wrote.
      progress: called with the number of clips rendered so far.

    Returns:
      Why `sheet.mp4` was not written, or None if it was.

    Raises:
      UserError: the folder holds something else or cannot be written, or clips are
        asked for where no video can be written.

    >>> write_folder(Path("actions"), Settings(), clips=4)  # doctest: +SKIP
    """
    for path in check(folder, clips, overwrite):
        path.unlink()
    lacking = render.can_write()
    videos, done = [], 0
    for label, name in enumerate(motions.CLASSES):
        for number in range(max(1, clips)):
            video = np.asarray(draw(settings, "files", label, number).video)
            if number < clips:
                path = folder / "clips" / name / f"{number:03}.mp4"
                render.write_video(path, video, FPS)
            if number == 0:
                videos.append(video)
            done += 1
            if progress:
                progress(done)
    shown = np.stack(videos)
    still = contact_sheet.strips(motions.CLASSES, shown)
    contact_sheet.write_image(folder / "sheet.png", still)
    if lacking is None:
        moving = contact_sheet.captioned(motions.CLASSES, shown, columns=6)
        moving = np.concatenate([moving] * _PLAYED)
        render.write_video(folder / "sheet.mp4", moving, FPS)
    return lacking


def check(folder: Path, clips: int = 0, overwrite: bool = False) -> list[Path]:
    """Raises what `write_folder` would; ask before the work.

    Returns:
      The files of an earlier call that would be replaced.
    """
    if clips < 0:
        raise UserError(f"clips={clips}: must not be negative")
    if clips and (lacking := render.can_write()):
        raise UserError(f"clips={clips}: {lacking}")
    out = f"out={str(folder)!r}"
    if reason := checkpoints.unwritable(folder):
        raise UserError(f"{out}: {reason}; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{out}: is a file; choose another folder")
    own = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if re.fullmatch(_FILES, name):
            own.append(path)
        elif not path.is_dir() and not path.name.startswith("."):
            what = f"exists and is no contact sheet (it holds {name})"
            raise UserError(f"{out}: {what}; choose another folder")
    if own and not overwrite:
        raise UserError(f"{out}: exists; choose another or --overwrite")
    return own
