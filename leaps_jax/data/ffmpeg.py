"""Decodes video files by FFmpeg.

mediapy and imageio-ffmpeg are imported only when a file is read.
"""

import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np

from leaps_jax.errors import UserError, last_line

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".gif")
_LARGEST = 4 * 2**30  # bytes of one decoded clip; an hour of film is a mistake


def read_video(path: Path) -> np.ndarray:
    """Decodes every frame of a file.

    Returns:
      (t, h, w, 3) uint8.

    Raises:
      UserError: a package is missing, or the file is broken or too large; the message
        says what is wrong, and leaves it to the caller to name the file.
    """
    try:
        import imageio_ffmpeg
        import mediapy
    except ImportError as error:
        remedy = "pip install mediapy 'imageio-ffmpeg<0.8', or give a .npz clip"
        raise UserError(f"videos need {error.name}; {remedy}") from None
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    mediapy.set_ffmpeg(ffmpeg)
    if broken := _fault(path, ffmpeg):
        raise UserError(f"is not a whole video ({broken}); replace or re-encode it")
    try:
        with mediapy.VideoReader(path) as reader:
            size = max(reader.num_images, 1) * math.prod(reader.shape) * 3
            if size > _LARGEST:
                raise UserError(
                    f"decodes to {size / 2**30:.1f} GiB, the most is"
                    f" {_LARGEST // 2**30}; trim the clip or make its frames smaller"
                )
            frames = list(reader)
    except RuntimeError as error:
        reason = last_line(str(error))
        raise UserError(f"cannot be decoded ({reason}); re-encode it") from None
    if not frames:
        raise UserError("has no frames; replace it")
    return np.stack(frames)


def _fault(path: Path, ffmpeg: str) -> str | None:
    """Why a file is no video or not all of one; ffmpeg decodes half a file gladly."""
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v:0"]
    command += ["-c", "copy", "-f", "null", "-"]  # walks the packets, decodes nothing
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        return last_line(result.stderr) or f"ffmpeg failed with {result.returncode}"
    for line in result.stderr.splitlines():
        if re.search("partial file|ended prematurely|truncated", line):
            return last_line(line)
    with path.open("rb") as file:  # two formats whose ends ffmpeg does not miss
        head = file.read(8)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 64))
        tail = file.read()
    if head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little") > end:
        return "the file is cut short"
    if head[:3] == b"GIF" and not tail.rstrip(b"\0").endswith(b";"):
        return "the file is cut short"
    return None
