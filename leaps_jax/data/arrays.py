"""Clips as arrays: NumPy files, and folders of frames.

Pillow is imported only to read frames; NumPy files load without it.
"""

import contextlib
import math
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from leaps_jax.data import limits
from leaps_jax.data.frames import Frames
from leaps_jax.errors import UserError, last_line

SUFFIXES = (".npy", ".npz")
FRAMES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow has others, some of which start programs
_WARNINGS = threading.Lock()
# NumPy reads headers with `ast`. Of Python 3.11 threads that did so at once failed now
# and then ("AST constructor recursion depth mismatch").
_HEADERS = threading.Lock()


def open_array(path: Path) -> Frames:
    """Opens a NumPy file; of a `.npz`, `video`, `frames` or the first array.

    Raises:
      UserError: the file is broken, too large or holds no clip; the message leaves it
        to the caller to name the file.
    """
    with _one_line():
        if zipfile.is_zipfile(path):
            return _open_member(path)
        with _HEADERS:
            array = np.lib.format.open_memmap(path, mode="r")
        return _opened(array.shape, array.dtype, lambda: iter(array))


def as_rgb(array: np.ndarray) -> np.ndarray:
    """An array of pixels as (t, h, w, 3) uint8.

    Args:
      array: (t, h, w) or (t, h, w, 1), grey; (t, h, w, 3) or (t, h, w, 4), whose alpha
        is dropped. Integers in 0..255 or floats in [0, 1].

    Raises:
      UserError: the shape, the type or the values are others, or it is too large.
    """
    return _opened(array.shape, array.dtype, lambda: iter(array)).whole()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns any error of numpy or zipfile at a damaged file into one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = last_line(str(error)).partition(". ")[0]
        what = f"is no array file ({reason}); save the clip with np.savez"
        raise UserError(what) from None


def _open_member(path: Path) -> Frames:
    with zipfile.ZipFile(path) as archive:
        found = [m.removesuffix(".npy") for m in archive.namelist() if m[-4:] == ".npy"]
        if not found:
            raise UserError("holds no array; save one (t, h, w, 3) array")
        name = next((k for k in ("video", "frames") if k in found), found[0]) + ".npy"
        with archive.open(name) as member:
            shape, fortran, dtype = _header(member)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed != archive.getinfo(name).file_size - member.tell():
                raise UserError("has an array of another size than it says; replace it")

    def frames() -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            _header(member)
            if fortran:  # its frames lie scattered
                limits.check_kept(claimed, "the clip", "save it in C order")
                array = np.frombuffer(member.read(), dtype)
                yield from array.reshape(shape, order="F")
                return
            size = math.prod(shape[1:]) * dtype.itemsize
            for _ in range(shape[0]):
                yield np.frombuffer(member.read(size), dtype).reshape(shape[1:])

    return _opened(shape, dtype, frames)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    with _HEADERS:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)


def _opened(
    shape: tuple[int, ...],
    dtype: np.dtype,
    frames: Callable[[], Iterator[np.ndarray]],
) -> Frames:
    """A clip of frames (h, w) or (h, w, c) that the iterators of `frames` give."""
    full = shape
    if len(shape) == 3 and shape[-1] not in (3, 4):
        full = (*shape, 1)
    if len(full) != 4 or full[-1] not in (1, 3, 4) or 0 in full:
        raise UserError(f"has shape {shape}; a clip is (t, h, w, 3)")
    if not (np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.integer)):
        raise UserError(f"has pixels of type {dtype}; save uint8 or float32")
    count, height, width, _ = full
    limits.check_frames(count)
    limits.check_frame(height, width)
    limits.check_stored(math.prod(shape) * dtype.itemsize)

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = frozenset(numbers)
        with _one_line():
            for number, frame in enumerate(frames()):
                _check_values(frame)  # of all frames, since they share a scale
                if number in wanted:
                    yield _frame_as_rgb(frame.reshape(full[1:]))

    return Frames(count, height, width, read)


def _check_values(frame: np.ndarray) -> None:
    low, high = frame.min(), frame.max()
    if np.issubdtype(frame.dtype, np.floating):
        if not np.isfinite(low) or not np.isfinite(high):
            raise UserError("has non-finite pixels; replace the NaN or infinite values")
        if low < -1e-3 or high > 1 + 1e-3:
            found = f"has float pixels from {low:.4g} to {high:.4g}"
            raise UserError(f"{found}; scale them to [0, 1] or save 0..255 as uint8")
    elif low < 0 or high > 255:
        raise UserError(f"has pixels from {low} to {high}; whole numbers go 0..255")


def _frame_as_rgb(frame: np.ndarray) -> np.ndarray:
    frame = frame[..., :3]
    if np.issubdtype(frame.dtype, np.floating):
        frame = np.rint(np.clip(frame, 0, 1).astype(np.float32) * 255)
    frame = frame.astype(np.uint8)
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame


def is_frame(path: Path) -> bool:
    """Whether a file is a frame of a clip, by its name."""
    return path.suffix.lower() in FRAMES and path.name[0] != "." and path.is_file()


def open_frames(folder: Path) -> Frames:
    """Opens a folder of frames, frame_2 before frame_10.

    Raises:
      UserError: a frame is no image, is too large, or of another size than the first;
        the message leaves it to the caller to name the folder.
    """
    found = filter(is_frame, sorted(folder.iterdir()))
    paths = sorted(found, key=lambda path: _natural_order(path.name))
    limits.check_frames(len(paths))
    sizes = list(map(_size, paths))
    height, width = sizes[0]
    for path, (h, w) in zip(paths, sizes, strict=True):
        if (h, w) != (height, width):
            other = f"{path.name} is {w}x{h} and the first frame is {width}x{height}"
            raise UserError(f"{other}; make all frames the same size")
    return Frames(
        len(paths), height, width, lambda numbers: (_pixels(paths[i]) for i in numbers)
    )


def _size(path: Path) -> tuple[int, int]:
    with _image(path) as image:
        return image.height, image.width


def _pixels(path: Path) -> np.ndarray:
    with _image(path) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which convert() clips
            frame = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(frame[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _image(path: Path) -> Iterator[Any]:
    """Opens a frame, of which Pillow has read no more than the size."""
    from PIL import Image

    try:
        # Pillow warns of large images, which are refused here anyway.
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
        with image:
            limits.check_frame(image.height, image.width)
            yield image
    except UserError as error:
        raise UserError(f"{path.name} {error}") from None
    except Exception as error:  # Pillow raises what it likes at a damaged file
        reason = last_line(str(error))
        raise UserError(f"{path.name} is no image ({reason}); replace it") from None


def _natural_order(name: str) -> list[Any]:
    return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)]
