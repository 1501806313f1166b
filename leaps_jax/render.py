"""Videos to look at: files in H.264 and GIF, grids, pictures that move.

Writes media through mediapy and Pillow, imported only when they are needed; knows
nothing of models, runs or classes.

>>> write_video("out.mp4", grid(result.videos), fps=8)  # doctest: +SKIP
"""

import errno
import html
import io
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from leaps_jax import files
from leaps_jax.errors import UserError

_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO),
    errno.ENOENT,  # the folder was removed
)


def write_video(path: str | os.PathLike[str], video: np.ndarray, fps: float) -> None:
    """Writes one video; the file appears whole or not at all.

    MP4 is H.264 with 4:2:0 chroma, which every browser plays; an odd height or width
    is made even by repeating the last row or column.

    Args:
      path: ends in .mp4 or .gif; missing folders are made.
      video: (t, h, w, 3), float in [0, 1] (clipped) or uint8.
      fps: frames a second.

    Raises:
      UserError: the extension, the video or the rate is wrong, or encoding fails.
      OSError: the disk is full.

    >>> write_video("grey.mp4", np.full((8, 64, 64, 3), 0.5), 8)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"path={str(path)!r}: videos are written as .mp4 or .gif")
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps={fps}: must be above 0")
    frames = _as_uint8(np.asarray(video))
    if reason := can_write():
        raise UserError(f"path={str(path)!r}: {reason}")
    if path.suffix.lower() == ".gif":
        options: dict[str, Any] = {"codec": "gif", "ffmpeg_args": ["-loop", "0"]}
    else:
        _, h, w, _ = frames.shape
        frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        options = {"codec": "h264", "crf": 16, "encoded_format": "yuv420p"}
        options["ffmpeg_args"] = ["-movflags", "+faststart"]  # plays while it loads

    def encode(file: BinaryIO) -> None:
        # To FFmpeg a relative name may be an address or, with a dash, an option.
        _mediapy().write_video(Path(file.name).absolute(), frames, fps=fps, **options)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, encode, suffix=path.suffix.lower())
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[-1]
        if os.strerror(errno.ENOSPC) in why:  # FFmpeg says so
            what = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, what, str(path)) from None
        what = f"the video cannot be written ({why})"
        raise UserError(f"path={str(path)!r}: {what}; check the folder") from None


def can_write() -> str | None:
    """Why videos cannot be written here, or None where they can.

    >>> if reason := can_write():  # doctest: +SKIP
    ...     print(f"no .mp4 files: {reason}")
    """
    try:
        _mediapy()
    except ImportError as error:
        remedy = "pip install mediapy 'imageio-ffmpeg<0.8'"
        return f"writing videos needs {error.name}; {remedy}"
    except RuntimeError as error:  # imageio-ffmpeg without a binary for this machine
        return f"no ffmpeg ({str(error).splitlines()[0]}); set IMAGEIO_FFMPEG_EXE"
    return None


def animation(video: np.ndarray, fps: float, most: int) -> bytes:
    """A picture in WebP that plays a video again and again.

    Args:
      video: (t, h, w, 3), float in [0, 1] (clipped) or uint8.
      fps: frames a second.
      most: pixels of its longer side; a larger video is made smaller.

    >>> animation(np.full((4, 8, 8, 3), 0.5), fps=8, most=100)[8:12]
    b'WEBP'
    """
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in _as_uint8(np.asarray(video))]
    for frame in frames:
        frame.thumbnail((most, most))
    content = io.BytesIO()
    first, *rest = frames
    duration = round(1000 / fps)
    first.save(
        content, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0
    )
    return content.getvalue()


def show_videos(
    videos: Sequence[np.ndarray], titles: Sequence[str], fps: float, columns: int
) -> None:
    """Plays videos in a notebook.

    Args:
      videos: each (t, h, w, 3), float in [0, 1] or uint8.
      titles: one for each.
      fps: frames a second.
      columns: videos a row.
    """
    escaped = [html.escape(title) for title in titles]  # mediapy does not
    _mediapy().show_videos(videos, escaped, fps=fps, columns=columns)


def grid(videos: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Lays videos out in rows, white between them.

    Args:
      videos: (n, t, h, w, 3), float in [0, 1] or uint8.
      columns: videos a row; by default as square as can be.
      gap: pixels between neighbours.

    Returns:
      (t, H, W, 3) of the same type.

    >>> grid(np.zeros((3, 8, 10, 10, 3)), columns=2, gap=2).shape
    (8, 22, 22, 3)
    """
    videos = np.asarray(videos)
    if videos.ndim != 5 or 0 in videos.shape:
        raise UserError(f"videos={videos.shape}: must have shape (n, t, h, w, 3)")
    if columns is not None and columns < 1:
        raise UserError(f"columns={columns}: must be at least 1")
    if gap < 0:
        raise UserError(f"gap={gap}: must not be negative")
    n, t, h, w, c = videos.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    white = 255 if videos.dtype == np.uint8 else 1
    height, width = rows * (h + gap) - gap, columns * (w + gap) - gap
    canvas = np.full((t, height, width, c), white, videos.dtype)
    for i, video in enumerate(videos):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[:, top : top + h, left : left + w] = video
    return canvas


def side_by_side(stimuli: np.ndarray, videos: np.ndarray) -> np.ndarray:
    """Shows each stimulus (left) beside the video made from it (right), a row a pair.

    Args:
      stimuli: (n, t, h, w, 3).
      videos: of the same shape.

    Returns:
      (t, H, W, 3).
    """
    stimuli, videos = np.asarray(stimuli), np.asarray(videos)
    if stimuli.shape != videos.shape:
        remedy = f"must have the shape of the videos, {videos.shape}"
        raise UserError(f"stimuli={stimuli.shape}: {remedy}")
    pairs = np.stack([stimuli, videos], axis=1)  # (n, 2, t, h, w, 3)
    return grid(pairs.reshape(-1, *videos.shape[1:]), columns=2)


def file_names(names: Sequence[str]) -> list[str]:
    """The name of each video's file, without what kind it is.

    >>> file_names(["jumping jack", "run"])
    ['000_jumping_jack', '001_run']
    """
    return [f"{i:03d}_{safe_name(name)}" for i, name in enumerate(names)]


def safe_name(name: str) -> str:
    """A class name as a part of a file name; letters of every script stay.

    >>> safe_name("playing guitar (indoors)/solo")
    'playing_guitar_indoors_solo'
    """
    kept = re.sub(r"\W+", "_", unicodedata.normalize("NFC", name))[:60]
    # File systems count bytes: 255, with what is put before and after.
    kept = kept.encode()[:120].decode(errors="ignore")
    return kept.strip("_") or "unnamed"


def _mediapy() -> Any:
    import imageio_ffmpeg
    import mediapy

    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return mediapy


def _as_uint8(video: np.ndarray) -> np.ndarray:
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise UserError(f"video={video.shape}: must have shape (t, h, w, 3)")
    if video.dtype == np.uint8:
        return video
    if not np.issubdtype(video.dtype, np.floating):
        raise UserError(f"video={video.dtype}: must be uint8 or float in [0, 1]")
    video = video.astype(np.float32)
    if not np.isfinite(video).all():
        raise UserError("video=non-finite pixels: replace the NaN or infinite values")
    return np.rint(np.clip(video, 0, 1) * 255).astype(np.uint8)
