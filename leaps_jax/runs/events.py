"""Event files for TensorBoard: numbers by step, and videos as they were at some steps.

The records are TensorBoard's own, from the package that also has the viewer, imported
only to write. Its queue and file system are left out: they import TensorFlow where that
is installed. What was written after the step that a run goes on from is told to be
void, as TensorBoard knows it, and is written again.
"""

import hashlib
import io
import json
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leaps_jax.errors import UserError
from leaps_jax.zoo import checkpoints

INSTALL = "pip install 'leaps_jax[tensorboard]'"
#: Ends the names of our files; the digits tell the run.
_SUFFIX = r"\.leaps_jax-[0-9a-f]{16}"


def check(folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
    """Refuses a folder in which a run cannot write its events.

    Args:
      folder: for the events.
      identity: of the run.
      overwrite: whether events of other runs of this package may be deleted.

    Raises:
      UserError: tensorboard is missing, or the folder cannot be written or holds events
        of another run.
    """
    given = f"tensorboard={str(folder)!r}"
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise UserError(f"{given}: needs {error.name}; {INSTALL}") from None
    if reason := checkpoints.unwritable(folder):
        raise UserError(f"{given}: {reason}; choose another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{given}: is a file; choose another folder")
    for path in _events(folder):
        ours = path.name.endswith(_suffix(identity))
        if not ours and not (overwrite and re.search(f"{_SUFFIX}$", path.name)):
            raise UserError(f"{given}: holds events of another run; choose another")


class Events:
    """Writes the events of one run.

    Args:
      folder: made if missing; `check` accepts it.
      identity: of the run, the same when it goes on.
      step: after which the run goes on; what was written of later steps is void.
      overwrite: delete the events that this package has written there.

    Raises:
      OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        step: int = 0,
        overwrite: bool = False,
    ):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer import record_writer

        folder.mkdir(parents=True, exist_ok=True)
        for path in _events(folder) if overwrite else ():
            if re.search(f"{_SUFFIX}$", path.name):
                path.unlink()
        begun = any(_events(folder))
        # TensorBoard reads files in the order of their names
        order = f"{time.time():017.6f}.{secrets.token_hex(4)}"
        name = f"events.out.tfevents.{order}{_suffix(identity)}"
        self._file = open(folder / name, "xb")
        self._records = record_writer.RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        if begun:
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step + 1 if step else 0, session_log=log)
        self._file.flush()

    def add_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers by name; "raw/priming" is in the group "raw"."""
        from tensorboard.compat.proto import summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=float(number))
            for name, number in numbers.items()
        ]
        self._add(step, summary=summary_pb2.Summary(value=values))
        self._file.flush()

    def add_videos(
        self, step: int, videos: Mapping[str, np.ndarray], fps: float
    ) -> None:
        """Adds videos by name, (t, h, w, 3) in [0, 1]."""
        from tensorboard.compat.proto import summary_pb2

        for name, video in videos.items():
            _, h, w, _ = video.shape
            image = summary_pb2.Summary.Image(
                height=h, width=w, colorspace=3, encoded_image_string=gif(video, fps)
            )
            value = summary_pb2.Summary.Value(tag=name, image=image)
            self._add(step, summary=summary_pb2.Summary(value=[value]))
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _add(self, step: int, **what: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(step=step, wall_time=time.time(), **what)
        self._records.write(event.SerializeToString())


def gif(video: np.ndarray, fps: float) -> bytes:
    """A video as a GIF that plays for ever, the only format that TensorBoard plays.

    Args:
      video: (t, h, w, 3) in [0, 1].
      fps: frames a second; browsers play at most 50.
    """
    from PIL import Image

    pixels = (np.nan_to_num(video).clip(0, 1) * 255).round().astype(np.uint8)
    # the quickest way to 256 colours: a preview has sixteen videos
    octree = Image.Quantize.FASTOCTREE
    first, *rest = (Image.fromarray(frame).quantize(256, octree) for frame in pixels)
    content = io.BytesIO()
    duration = max(20, round(1000 / fps))  # milliseconds of a frame
    first.save(
        content, "GIF", save_all=True, append_images=rest, duration=duration, loop=0
    )
    return content.getvalue()


def _events(folder: Path) -> list[Path]:
    """The event files of a folder, of whatever program."""
    return [path for path in folder.iterdir() if "tfevents" in path.name]


def _suffix(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return f".leaps_jax-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
