"""Decodes video files by FFmpeg; imageio-ffmpeg is imported only when one is opened.

A file comes from anywhere. FFmpeg is told that the name is one of a file and no
address, and reads that file alone: no other protocol, no playlist, no script.
"""

import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from leaps_jax.data import containers, limits
from leaps_jax.data.frames import Frames
from leaps_jax.errors import UserError, last_line

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".gif")
# Those of FFmpeg's formats that hold a video themselves; the content says which it is.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_DETECTED = "crccheck+bitstream+buffer+explode"
# Said of videos that are whole.
_HARMLESS = re.compile("Referenced QT chapter track not found")
# What follows from another error, which was said before.
_AFTERMATH = re.compile(
    "Task finished|Terminating thread|Error (opening|submitting|processing|sending)|"
    "Could not open encoder|Nothing was written|Cannot determine format|"
    "Decode error rate|Conversion failed"
)


def open_video(path: Path) -> Frames:
    """Decodes a file once, to see that it is whole and how many frames it has.

    Args:
      path: of the file. Of several video streams the first is read, and a thumbnail
        is none.

    Raises:
      UserError: FFmpeg is missing, or the file is broken or too large; the message
        says what is wrong, and leaves it to the caller to name the file.
    """
    check_file(path)
    command = [*_command(path), "-frames:v", str(limits.FRAMES + 1)]
    command += ["-fps_mode", "passthrough", "-f", "framecrc", "pipe:1"]
    result = subprocess.run(command, capture_output=True, env=_environment())
    said = result.stderr.decode(errors="replace")
    if fault := _fault(result.returncode, said) or containers.fault(path):
        if "max pixel count" in said:
            side = f"the most is {limits.PIXELS} pixels a frame"
            raise UserError(f"has frames too large; {side}, make them smaller")
        raise UserError(f"is not a whole video ({fault}); replace or re-encode it")
    lines = result.stdout.decode().splitlines()
    count = sum(line.startswith("0,") for line in lines)
    sizes = [line for line in lines if line.startswith("#dimensions 0:")]
    if not count or not sizes:
        raise UserError("has no frames; replace it")
    limits.check_frames(count)
    width, height = map(int, sizes[0].split()[-1].split("x"))

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        frames = _frames(path, numbers[0], numbers[-1] + 1, height, width)
        wanted = frozenset(numbers)
        return (frame for i, frame in enumerate(frames, numbers[0]) if i in wanted)

    return Frames(count, height, width, read)


def check_file(path: Path) -> None:
    """Raises UserError where a path is no regular file: a pipe would be waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError("is no regular file; give a file or a folder of frames")
    with path.open("rb"):  # OSError, with a reason better than FFmpeg's
        pass


def _command(path: Path) -> list[str]:
    """The start of a command that decodes a file, and fails where that is damaged."""
    try:
        import imageio_ffmpeg

        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError as error:
        remedy = "pip install imageio-ffmpeg, or give a .npz clip"
        raise UserError(f"videos need {error.name}; {remedy}") from None
    except RuntimeError as error:
        remedy = "set IMAGEIO_FFMPEG_EXE, or give a .npz clip"
        raise UserError(f"no ffmpeg ({last_line(str(error))}); {remedy}") from None
    command = [ffmpeg, "-v", "level+error", "-nostdin", "-xerror"]
    # Two threads, since each holds frames, and clips are read side by side.
    command += ["-threads", "2", "-err_detect", _DETECTED]
    command += ["-max_pixels", str(limits.PIXELS), "-protocol_whitelist", "file"]
    command += ["-format_whitelist", _FORMATS, "-i", f"file:{os.path.abspath(path)}"]
    return [*command, "-map", "0:V:0"]  # V leaves thumbnails out


def _environment() -> dict[str, str]:
    # A static FFmpeg crashes in the C library's tables of character sets, which it
    # looks up for the names of programmes in an MPEG transport stream.
    return os.environ | {"GCONV_PATH": os.devnull}


def _fault(code: int, said: str) -> str | None:
    """Why a file is no video or not all of one, by what FFmpeg said."""
    lines = [line for line in said.splitlines() if not _HARMLESS.search(line)]
    if not lines and not code:
        return None
    if code < 0:
        return f"ffmpeg crashed with signal {-code}"
    if match := re.search(r"\[(\w+)[^]]* @ [^]]*\].*Format not on whitelist", said):
        return f"it is a file of type {match[1]}"
    causes = [last_line(line) for line in lines if not _AFTERMATH.search(line)]
    return (causes or [last_line(said) or f"ffmpeg failed with {code}"])[0]


def _frames(
    path: Path, start: int, stop: int, height: int, width: int
) -> Iterator[np.ndarray]:
    """Decodes frames `start` to `stop`, each (h, w, 3) uint8."""
    chosen = f"trim=start_frame={start}:end_frame={stop},scale={width}:{height}"
    command = [*_command(path), "-vf", chosen, "-fps_mode", "passthrough"]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    )
    assert process.stdout is not None
    try:
        for number in range(start, stop):
            pixels = process.stdout.read(height * width * 3)
            if len(pixels) < height * width * 3:
                what = f"frame {number} of {stop} cannot be decoded"
                raise UserError(f"{what}; re-encode it")
            yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
